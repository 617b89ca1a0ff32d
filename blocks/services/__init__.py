"""What blocks need of the world outside: packages that may be missing, threads for models, HTTP, and its failures."""
