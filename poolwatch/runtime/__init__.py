"""Being a guest in another program's process: guards, forks, collections, imports."""
