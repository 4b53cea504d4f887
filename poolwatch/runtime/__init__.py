"""Running inside another program's process: guards, forks, collections, imports."""
