collect_ignore_glob = ["*.py"]  # no tests, and the backend imports what only the server has
