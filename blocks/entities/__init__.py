"""What is known of each person, place and thing that was spoken of."""
