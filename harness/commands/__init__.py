"""Takes the words of a command line; gives `python -m harness COMMAND`: options, what runs, and how it exits."""
