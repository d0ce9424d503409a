"""One module per command: its flags, and what is printed and written. They measure nothing themselves."""
