"""`python -m adapterpack_cli` is the `adapterpack` command."""

from adapterpack_cli.entry import main

if __name__ == "__main__":
    main()
