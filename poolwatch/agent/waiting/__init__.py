"""What the threads and tasks of a process wait for, read from their frames."""
