"""What `megaslm init` found and wrote, for a terminal."""

from collections.abc import Iterator

from megaslm.observe.display import counted, size
from megaslm.scaffold.init import Project
from megaslm.scaffold.sizes import heldout_fraction, run_sizes
from megaslm.scaffold.text_look import TextLook


def show_project(project: Project) -> None:
    """Prints what was found, the files, and the commands that follow."""
    print(
        f"model: {project.family}, {project.parameters:,} {'untrained ' * project.untrained}parameters, "
        f"{project.positions:,} positions; "
        f"rows of {project.seq_len:,} targets; BOS: {project.bos}"
    )
    print(f"corpus: {_described(project.corpus)}")
    print(f"curated: {_described(project.curated)}")
    print(f"written, to be read and changed: {', '.join(str(file) for file in project.files)}")
    for name, look in (("corpus", project.corpus), ("curated", project.curated)):
        for warning in _warnings(name, look, project.seq_len):
            print(f"warning: {name}: {warning}")
    if project.in_both:
        more = f" and {counted(len(project.in_both) - 1, 'other file')}" if len(project.in_both) > 1 else ""
        print(
            f"warning: {project.in_both[0]}{more}: in the corpus and in the curated text; CLM and SLM will be trained "
            "on documents by which they are then compared; name each file in one of the two"
        )
    print("then, in this order:\n")
    for command in project.commands:
        print(f"    {command}")


def _described(look: TextLook) -> str:
    taken = ", ".join(f"{key} {value!r}" for key, value in look.taken_from.items()) or "a document per file"
    return (
        f"{counted(look.files, f'{look.reader} file')}, {size(look.input_bytes)}, about "
        f"{counted(look.documents, 'document')} and {counted(look.tokens, 'token')}; text from {taken}"
    )


def _warnings(name: str, look: TextLook, seq_len: int) -> Iterator[str]:
    """What will be missing or refused later on."""
    if look.unread:
        yield (
            f"{', '.join(look.unread)} in the same folders will not be read; to read them, add a source to {name}.yaml "
            "(data/README.md)"
        )
    heldout = heldout_fraction(look.documents)
    if not heldout:
        yield (
            f"{counted(look.documents, 'document')}, too few to hold any out for validation; to compare runs by their "
            "loss on this text, divide it into more documents"
        )
    step_tokens = run_sizes(look.trained_tokens, seq_len).batch_tokens
    if look.trained_tokens < step_tokens:
        yield (
            f"about {counted(look.tokens, 'token')} are less than one step of {step_tokens:,}, and a run on them will "
            "be refused; give more text"
        )
