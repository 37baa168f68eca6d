"""Find a base model by name: the embedded one, a local directory, or a name on the hub."""

from dataclasses import dataclass
from pathlib import Path

from ...client.errors import BadRequest, NotFound

TINY = "weft/tiny"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model's files lie and the names it answers to."""

    name: str
    directory: Path
    aliases: tuple[str, ...]


def find_model(name: str) -> ModelSource:
    """Resolve a model name to a directory; a hub name is downloaded when it is not cached.

    A model also answers to its Hugging Face name when the directory shows one: the last two parts
    of `.../Qwen/Qwen3-0.6B`, or the `models--Qwen--Qwen3-0.6B` of the hub's cache.

    Raises:
        NotFound: no such directory, and no such model in the cache or on the hub.
    """
    if name == TINY:
        return ModelSource(TINY, Path(__file__).parents[1] / "tiny", ())
    path = Path(name).expanduser()
    if path.is_dir():
        resolved = path.resolve()
        aliases = [f"{resolved.parent.name}/{resolved.name}", str(resolved), resolved.name]
        cached = [part for part in resolved.parts if part.startswith("models--")]
        aliases += [part.removeprefix("models--").replace("--", "/", 1) for part in cached]
        return ModelSource(name, resolved, tuple(a for a in aliases if a != name))
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise NotFound(f"no model directory {name!r}")
    return ModelSource(name, _from_hub(name), ())


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise NotFound(
            f"{name!r} is no directory here and could not be had from the hub: {reason}"
        ) from error


def check_files(directory: Path) -> None:
    """Refuse a directory that lacks what a model needs; raises BadRequest naming it."""
    missing = [] if (directory / "config.json").is_file() else ["config.json"]
    if not any(directory.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        pickles = sorted(path.name for ending in _PICKLES for path in directory.glob(ending))
        detail = f"; {pickles[0]} is a pickle, which is never read" if pickles else ""
        raise BadRequest(f"{directory} lacks {' and '.join(missing)}{detail}")
