"""Small JSON files that MegaSLM wrote for itself, read back: a disk or a hand may have changed them since."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from megaslm.errors import DataError

Model = TypeVar("Model", bound=BaseModel)


def read_back(model: type[Model], content: bytes, place: str, remedy: str) -> Model:
    """The record that a file holds. Raises DataError, which ends with `remedy`, where it holds another or none.

    `place` is what the message calls the file.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise DataError(f"{place} is not what MegaSLM writes there ({where}{first['msg']}); {remedy}") from error
