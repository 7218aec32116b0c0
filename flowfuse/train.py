"""``python -m flowfuse.train``: the command ``flowfuse-train``, as torchrun starts it."""

from flowfuse.cli.train import command

if __name__ == "__main__":
    command()
