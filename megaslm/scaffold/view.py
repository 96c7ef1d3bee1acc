"""What `megaslm init` found and wrote, for a terminal."""

from megaslm.scaffold.init import Project
from megaslm.scaffold.text_look import TextLook


def show_project(project: Project) -> None:
    """Prints what was found, the files, and the commands that follow."""
    print(
        f"model: {project.family}, {project.parameters:,} parameters, {project.positions:,} positions; "
        f"rows of {project.seq_len:,} targets; BOS: {project.bos}"
    )
    print(f"corpus: {_described(project.corpus)}")
    print(f"curated: {_described(project.curated)}")
    print(f"written, to be read and changed: {', '.join(str(file) for file in project.files)}")
    print("then, in this order:\n")
    for command in project.commands:
        print(f"    {command}")


def _described(look: TextLook) -> str:
    taken = ", ".join(f"{key} {value!r}" for key, value in look.taken_from.items()) or "a document per file"
    return (
        f"{look.files:,} {look.reader} files, {look.input_bytes / 1e6:,.1f} MB, about {look.documents:,} documents and "
        f"{look.tokens:,} tokens; text from {taken}"
    )
