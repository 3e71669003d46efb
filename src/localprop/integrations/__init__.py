"""Local learning in the frameworks that people use; each file needs the package that it is named after."""
