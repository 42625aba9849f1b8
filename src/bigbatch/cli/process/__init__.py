"""The program as a process: its standard streams, how it ends, and the processes that it starts."""
