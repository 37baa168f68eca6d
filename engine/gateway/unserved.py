"""What fields of the SDK's requests may ask for and is not served: refused by name, with the reason."""

from dataclasses import dataclass

from .bodies import (
    Body,
    CopyWeights,
    CreateModel,
    CreateSession,
    EncodedTextChunk,
    LoadWeights,
    OptimStep,
    Sample,
    SaveWeightsExternal,
    SaveWeightsForSampler,
)
from .errors import Unserved


@dataclass(frozen=True, slots=True)
class _Refused:
    """A field that is not served, but for its default and `served`."""

    name: str
    reason: str
    served: object = None


_PROJECT = "there are no projects"
_ADAM = "AdamW is the only optimizer"
_TOKEN = "there are no access tokens; what is published can be read by its path"
UNSERVED: dict[type[Body], tuple[_Refused, ...]] = {
    CreateSession: (_Refused("project_id", _PROJECT),),
    CreateModel: (_Refused("optimizer_config", _ADAM, {"type": "adamw"}),),
    OptimStep: (_Refused("optimizer_params", _ADAM),),
    LoadWeights: (
        _Refused("optimizer_config", _ADAM, {"type": "adamw"}),
        _Refused("weights_access_token", _TOKEN),
    ),
    SaveWeightsForSampler: (_Refused("kind", "samplers keep the weights they have", "snapshot"),),
    SaveWeightsExternal: (_Refused("age_encryption_recipients", "exports are not encrypted"),),
    Sample: (
        _Refused("base_model", "the sampling session says it"),
        _Refused("model_path", "the sampling session says it"),
        _Refused("record_stability_info", "there is no stable_reinforce", False),
    ),
    CopyWeights: (
        _Refused("destination_project_id", _PROJECT),
        _Refused("weights_access_token", _TOKEN),
    ),
}


def refuse_unserved(body: Body) -> None:
    """Refuse what a request asks for and is not served.

    Raises:
        Unserved: naming the field, its value and the reason.
    """
    for refused in UNSERVED.get(type(body), ()):
        value = getattr(body, refused.name)
        if value is not None and value != refused.served:
            shown = "given" if refused.name == "weights_access_token" else repr(value)[:200]
            raise Unserved(
                f"{refused.name} is {shown}, which is not served: {refused.reason}", refused.name
            )
    if isinstance(body, Sample):
        for chunk in body.prompt.chunks:
            if not isinstance(chunk, EncodedTextChunk):
                kind = chunk.__struct_config__.tag
                raise Unserved(
                    f"a chunk of type {kind!r} is not served; 'encoded_text' is", "chunks"
                )
