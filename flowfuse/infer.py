"""``python -m flowfuse.infer``: the command ``flowfuse-infer``, as torchrun starts it."""

from flowfuse.cli.infer import command

if __name__ == "__main__":
    command()
