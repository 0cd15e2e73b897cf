"""What an operator types: one module a command, thin, and imported only when it is called."""
