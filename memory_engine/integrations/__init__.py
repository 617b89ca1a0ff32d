"""One file for each agent framework, each imported on demand; `import memory_engine` imports none of them."""
