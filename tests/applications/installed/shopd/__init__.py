"""An application that is installed, with honest work of many shapes."""
