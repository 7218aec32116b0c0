"""``python -m flowfuse.infer``: the command ``flowfuse-infer``, without an installation."""

from flowfuse.cli.infer import command

if __name__ == "__main__":
    command()
