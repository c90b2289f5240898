"""Tables, figures and reference runs: each one declared as data and run by one command."""
