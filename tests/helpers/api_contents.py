"""What stands on which page of the API reference."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Public names of one source file that belong to a page; none named: all its functions."""

    file: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """One page of the reference."""

    title: str
    about: str
    parts: tuple[Part, ...]


PAGES = {
    "service": Page(
        "ServiceClient",
        "A session with a server; makes everything else.",
        (Part("client/service.py", ("ServiceClient",)),),
    ),
    "training": Page(
        "TrainingClient",
        "Trains one adapter.",
        (Part("client/training.py", ("TrainingClient",)),),
    ),
    "sampling": Page(
        "SamplingClient",
        "Samples from a base model or from weights that no longer change.",
        (Part("client/sampling.py", ("SamplingClient",)),),
    ),
    "rest": Page(
        "RestClient",
        "Runs, checkpoints and files.",
        (Part("client/rest.py", ("RestClient", "UploadPeftResponse")),),
    ),
    "future": Page(
        "APIFuture",
        "The result of a call that is on its way.",
        (Part("client/futures.py", ("APIFuture",)),),
    ),
    "events": Page(
        "EventStream",
        "What happens on the server, as it happens.",
        (Part("client/events.py", ("EventStream", "ServerEvent")),),
    ),
    "inputs": Page(
        "Inputs and options",
        "What calls take.",
        (
            Part("client/types.py", ("ModelInput", "EncodedTextChunk", "Datum")),
            Part("client/tensor_data.py", ("TensorData",)),
            Part("client/types.py", ("SamplingParams", "AdamParams", "LoraConfig")),
        ),
    ),
    "results": Page(
        "Results",
        "What calls give.",
        (
            Part(
                "client/types.py",
                (
                    "ForwardBackwardOutput",
                    "OptimStepResponse",
                ),
            ),
            Part(
                "client/sample_results.py",
                ("SampleResponse", "SampledSequence", "TopkLogprobs", "PromptAltTokens"),
            ),
            Part(
                "client/types.py",
                (
                    "SaveWeightsResponse",
                    "SaveWeightsForSamplerResponse",
                    "SaveWeightsExternalResponse",
                    "LoadWeightsResponse",
                    "GetInfoResponse",
                    "ModelData",
                    "GetServerCapabilitiesResponse",
                    "SupportedModel",
                ),
            ),
            Part(
                "client/rest_types.py",
                (
                    "TrainingRun",
                    "TrainingRunsResponse",
                    "Checkpoint",
                    "CheckpointsListResponse",
                    "Cursor",
                    "WeightsInfoResponse",
                    "GetSessionResponse",
                    "ListSessionsResponse",
                    "GetSamplerResponse",
                ),
            ),
        ),
    ),
    "renderer": Page(
        "Renderer",
        "From conversations to tokens and back.",
        (Part("client/renderers.py", ("Renderer",)),),
    ),
    "rates": Page(
        "Learning rates and schedules",
        "A first learning rate, and how it changes over a run.",
        (Part("client/learning_rates.py"), Part("client/schedules.py")),
    ),
    "errors": Page(
        "Exceptions",
        "What calls raise; the codes are in [errors](../errors.md).",
        (
            Part(
                "client/errors.py",
                (
                    "WeftError",
                    "BadRequest",
                    "NotFound",
                    "Unauthorized",
                    "Conflict",
                    "TemplateError",
                    "Busy",
                    "Timeout",
                    "Disconnected",
                    "EngineFailed",
                ),
            ),
        ),
    ),
    "engine": Page(
        "Engine",
        "The whole engine inside a program of yours (`from weft.engine import Engine`).",
        (
            Part("engine/embedded.py", ("Engine", "EngineConfig")),
            Part("engine/worker/config.py", ("WorkerConfig",)),
        ),
    ),
}
