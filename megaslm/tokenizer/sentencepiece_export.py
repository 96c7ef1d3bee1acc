"""A SentencePiece model as a Hugging Face folder that gives the very same ids.

It is built from the model's own description, because transformers' tokenizer classes change ids: they add a prefix
space, strip spaces or merge in another order.
"""

import json
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from megaslm.errors import DataError
from megaslm.tokenizer.folder_tokens import TOKENIZER_FILE

ORIGINAL = "sentencepiece_original.model"
"""The file of a tokenizer's folder that holds the model, for folders whose documents must be compared with it."""
SPACE = "▁"
# Unigram looks names up in the vocabulary, so that "</s>" or "<0x0A>" in a text would become that token. In texts and
# pieces "<" is therefore replaced by this noncharacter, which no Unicode text contains.
ANGLE = "\uffff"
_Piece = proto.ModelProto.SentencePiece


def export_sentencepiece(model: bytes, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json for a model file's content.

    Raises DataError for models that have no exact counterpart (neither BPE nor Unigram, unused pieces, spaces as
    suffixes, user-defined pieces behind a dummy prefix) and for those without EOS.
    """
    description = proto.ModelProto.FromString(model)
    _require_exportable(description)
    tokenizer = _build(description)
    special = _special_tokens(description)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / TOKENIZER_FILE))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)


def _require_exportable(description: proto.ModelProto) -> None:
    trainer = description.trainer_spec
    if trainer.model_type not in (trainer.BPE, trainer.UNIGRAM):
        raise DataError("the SentencePiece model is neither BPE nor Unigram; only these have an exact fast tokenizer")
    if trainer.treat_whitespace_as_suffix:
        raise DataError("the SentencePiece model treats spaces as suffixes, which no fast tokenizer does")
    if trainer.eos_id < 0:
        raise DataError("the SentencePiece model has no EOS piece; documents cannot be separated: train it with eos_id")
    kinds = {piece.type for piece in description.pieces}
    if _Piece.UNUSED in kinds:
        raise DataError("the SentencePiece model has unused pieces, which no fast tokenizer knows")
    if _Piece.USER_DEFINED in kinds and description.normalizer_spec.add_dummy_prefix:
        raise DataError(
            "the SentencePiece model has user-defined pieces and a dummy prefix; no fast tokenizer has both"
        )


def _build(description: proto.ModelProto) -> Tokenizer:
    is_unigram = description.trainer_spec.model_type == description.trainer_spec.UNIGRAM
    tokenizer = Tokenizer(_unigram(description) if is_unigram else _bpe(description))
    tokenizer.normalizer = _normalizer(description.normalizer_spec, is_unigram)
    tokenizer.decoder = _decoder(description.normalizer_spec, is_unigram)
    control, user_defined = (_Piece.CONTROL, _Piece.UNKNOWN), (_Piece.USER_DEFINED,)
    tokenizer.add_special_tokens(
        [AddedToken(piece.piece, special=True, normalized=False) for piece in _of(description, *control)]
    )
    tokenizer.add_tokens(
        [
            AddedToken(piece.piece.replace(SPACE, " "), special=False, normalized=False)
            for piece in _of(description, *user_defined)
        ]
    )
    return tokenizer


def _bpe(description: proto.ModelProto) -> models.BPE:
    vocabulary = {piece.piece: number for number, piece in enumerate(description.pieces)}
    return models.BPE(
        vocab=vocabulary,
        merges=_merges(description),
        unk_token=description.pieces[description.trainer_spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=description.trainer_spec.byte_fallback,
    )


def _merges(description: proto.ModelProto) -> list[tuple[str, str]]:
    """SentencePiece merges the two neighbours that make the best piece. So every split of a piece into two is a merge,
    in the order of the pieces' scores."""
    pieces = {piece.piece for piece in _of(description, _Piece.NORMAL)}
    by_score = sorted(_of(description, _Piece.NORMAL), key=lambda piece: -piece.score)
    return [
        (piece.piece[:cut], piece.piece[cut:])
        for piece in by_score
        for cut in range(1, len(piece.piece))
        if piece.piece[:cut] in pieces and piece.piece[cut:] in pieces
    ]


def _unigram(description: proto.ModelProto) -> models.Unigram:
    return models.Unigram(
        vocab=[
            (piece.piece.replace("<", ANGLE) if piece.type == _Piece.NORMAL else piece.piece, piece.score)
            for piece in description.pieces
        ],
        unk_id=description.trainer_spec.unk_id,
        byte_fallback=description.trainer_spec.byte_fallback,
    )


def _normalizer(spec: proto.NormalizerSpec, is_unigram: bool) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if is_unigram:
        steps.append(normalizers.Replace("<", ANGLE))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps)


def _decoder(spec: proto.NormalizerSpec, is_unigram: bool) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback()]
    if is_unigram:
        steps.append(decoders.Replace(ANGLE, "<"))
    steps.append(decoders.Fuse())
    if spec.add_dummy_prefix:
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    return decoders.Sequence(steps)


def _special_tokens(description: proto.ModelProto) -> dict[str, str]:
    trainer = description.trainer_spec
    ids = {
        "bos_token": trainer.bos_id,
        "eos_token": trainer.eos_id,
        "unk_token": trainer.unk_id,
        "pad_token": trainer.pad_id,
    }
    return {name: description.pieces[number].piece for name, number in ids.items() if number >= 0}


def _of(description: proto.ModelProto, *kinds: int) -> list[proto.ModelProto.SentencePiece]:
    return [piece for piece in description.pieces if piece.type in kinds]


def _write_json(path: Path, content: dict[str, object] | dict[str, str]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
