"""Reads from their frames what the threads and tasks of a process wait for."""
