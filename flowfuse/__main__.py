"""``python -m flowfuse``: the command ``flowfuse``, without an installation."""

from flowfuse.cli.main import command

if __name__ == "__main__":
    command()
