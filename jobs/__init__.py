"""Entry scripts: each parses its flags, calls the library and prints the result."""
