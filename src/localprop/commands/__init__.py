"""The commands of the command line, a file each or for a few that belong together; what they print and take."""
