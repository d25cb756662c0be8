"""The command line: words in, words out. click and rich live here and nowhere else."""
