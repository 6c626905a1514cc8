"""What a user writes: teacher, student, data, training and cluster, with the rules between them."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from kd_launch.cluster import CLOSED, Cluster, Line, Name, PathText, Positive, TimeLimit

Dtype = Literal["bfloat16", "float16", "float32"]
Auto = Literal["auto"]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


class TeacherParallelism(BaseModel):
    """How the teacher is laid over its GPUs; the product is their number."""

    model_config = CLOSED

    replicas: Positive = 1
    """Complete copies of the teacher."""
    fsdp: Positive = 1
    """Ranks that share one copy's weights and gather them layer by layer."""
    tp: Positive = 1
    """Ranks that split each matrix product."""
    pp: Positive = 1
    """Stages that split the layers."""

    @property
    def gpus(self) -> int:
        return self.replicas * self.fsdp * self.tp * self.pp


class StudentParallelism(BaseModel):
    """How the student is laid over its GPUs; the product is their number."""

    model_config = CLOSED

    replicas: Positive = 1
    """Groups that each hold the whole training state."""
    fsdp: Positive = 1
    """Ranks that share one training state."""

    @property
    def gpus(self) -> int:
        return self.replicas * self.fsdp


class TeacherLayers(BaseModel):
    """A student made of some of the teacher's layers."""

    model_config = CLOSED

    teacher_layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """The teacher's layers that the student keeps, from 0, increasing."""

    @model_validator(mode="after")
    def layers_increase(self) -> Self:
        if any(b <= a for a, b in zip(self.teacher_layers, self.teacher_layers[1:], strict=False)):
            raise ValueError(f"teacher_layers must increase; they are {list(self.teacher_layers)}")
        return self


class Teacher(BaseModel):
    """The large model; it is frozen."""

    model_config = CLOSED

    model: PathText
    """A folder with config.json and safetensors, else a hub id."""
    revision: Line | None = None
    """Of the hub id."""
    trust_remote_code: bool = False
    """Whether code from the model's repository may run."""
    dtype: Dtype = "bfloat16"
    """Of weights and compute."""
    parallelism: Auto | TeacherParallelism = "auto"
    """auto, or {replicas, fsdp, tp, pp}."""
    pool: Auto | Name = "auto"
    """A pool of the cluster."""
    gpus: Auto | Positive = "auto"
    """Pins the number of GPUs."""


class Student(BaseModel):
    """The small model; it is trained."""

    model_config = CLOSED

    model: PathText | None = None
    """A folder or a hub id; omitted when start_from names the teacher's layers."""
    start_from: Literal["pretrained", "random"] | TeacherLayers = "pretrained"
    """pretrained, random (the shape from config.json), or {teacher_layers: [0, 4, 8]}."""
    revision: Line | None = None
    """Of the hub id."""
    trust_remote_code: bool = False
    """Whether code from the model's repository may run."""
    dtype: Dtype = "bfloat16"
    """Of compute; master weights and Adam states are float32."""
    parallelism: Auto | StudentParallelism = "auto"
    """auto, or {replicas, fsdp}."""
    reshard_after_forward: Auto | bool = "auto"
    """Of fsdp: true is ZeRO-3; false keeps weights gathered until the backward."""
    activation_recompute: Auto | Literal["none", "full"] = "auto"
    """Whether activations are computed again in the backward."""
    pool: Auto | Name = "auto"
    """A pool of the cluster."""
    gpus: Auto | Positive = "auto"
    """Pins the number of GPUs."""

    @model_validator(mode="after")
    def model_or_teacher_layers(self) -> Self:
        if self.model is None and not isinstance(self.start_from, TeacherLayers):
            raise ValueError(
                "student.model is missing; name a folder or hub id, or set start_from: {teacher_layers: [...]}"
            )
        if self.model is not None and isinstance(self.start_from, TeacherLayers):
            raise ValueError(
                f"student.model is '{self.model}' but start_from takes the teacher's layers; leave one of the two out"
            )
        return self


class Distillation(BaseModel):
    """What the student learns from the teacher, and how the teacher's knowledge travels."""

    model_config = CLOSED

    beta: Fraction = 0.5
    """Generalized JSD as in GKD and TRL: 0 is forward KL, 1 is reverse KL."""
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0
    """Divides both models' logits; no T^2 factor."""
    cross_entropy_weight: Fraction = 0.0
    """(1 - w) * divergence + w * cross-entropy."""
    payload: Auto | Literal["hidden_states", "logits", "top_k"] = "auto"
    """What the teacher sends; top_k only when asked for, since it is not exact."""
    top_k: Positive = 64
    """Logits per token of payload top_k."""
    prefetch: Auto | Positive = "auto"
    """Micro-batches that the teacher may work ahead."""


class HubDataset(BaseModel):
    """A data set on the hub."""

    model_config = CLOSED

    hub: Line
    """owner/name."""
    config: Line | None = None
    """The data set's configuration."""
    split: Line = "train"
    """The split."""


Source = PathText | Annotated[tuple[PathText, ...], Field(min_length=1)] | HubDataset


class Data(BaseModel):
    """The text and how it becomes sequences."""

    model_config = CLOSED

    train: Source
    """Files (globs allowed), a list of them, a folder, or {hub: owner/name, config: null, split: train}."""
    eval: Source | None = None
    """Held-out data of the same format."""
    format: Literal["text", "chat", "tokens"] = "text"
    """text, chat, or tokens (.npy [sequences, length], rows as they are)."""
    text_field: Line = "text"
    """The field of a JSON line or column with the text."""
    messages_field: Line = "messages"
    """The field of a JSON line or column with the conversation."""
    sequence_length: Annotated[int, Field(ge=2, le=2**24)] = 4096
    """Tokens of a sequence."""
    packing: bool = True
    """Whether documents share a sequence; they do not attend to each other."""
    shuffle: bool = True
    """Whether sequences are drawn in an order given by the seed and the epoch."""


class Training(BaseModel):
    """The student's optimisation."""

    model_config = CLOSED

    steps: Annotated[int, Field(ge=1, le=10**9)]
    """Optimizer steps."""
    global_batch_size: Positive = 256
    """Sequences per optimizer step."""
    micro_batch_size: Auto | Positive = "auto"
    """Sequences per student rank in one forward and backward."""
    learning_rate: Annotated[float, Field(gt=0)] = 1.0e-5
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """After the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = 20
    """Steps of linear warm-up."""
    weight_decay: NonNegative = 0.0
    """AdamW's."""
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's; eps is 1e-8."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this norm; null: never."""
    compile: Auto | bool = "auto"
    """torch.compile of the elementwise parts."""
    eval_every_steps: Positive = 100
    """Steps between evaluations."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the data order and of random weights."""


class Checkpoint(BaseModel):
    """When the training state is saved."""

    model_config = CLOSED

    every_steps: Positive = 200
    """Steps between checkpoints: what a fault costs at most, beside the steps made while one is written. One that takes
    longer than that puts off the next."""
    keep: Positive = 2
    """Newest checkpoints that are kept."""


class SlurmOptions(BaseModel):
    """sbatch options of this run."""

    model_config = CLOSED

    time_limit: TimeLimit | None = None
    """Overrides the cluster's."""
    account: Line | None = None
    """Overrides the cluster's and the pool's."""
    qos: Line | None = None
    """Overrides the pool's."""
    reservation: Line | None = None
    """A reservation to run in."""
    dependency: Line | None = None
    """Such as afterok:123."""
    mail_user: Line | None = None
    """Who is told when the job begins, ends and fails."""
    comment: Line | None = None
    """A comment for the accounting."""


class Spec(BaseModel):
    """One distillation: everything that decides its result, and where it runs."""

    model_config = CLOSED

    name: Name | None = None
    """Of the run; null: the file's stem."""
    teacher: Teacher
    """The large model."""
    student: Student
    """The small model."""
    distillation: Distillation = Distillation()
    """Loss and payload."""
    data: Data
    """The text."""
    training: Training
    """The optimisation."""
    checkpoint: Checkpoint = Checkpoint()
    """When to save."""
    placement: Literal["auto", "disjoint", "colocated"] = "auto"
    """Teacher and student on GPUs of their own, or on the same."""
    objective: Literal["throughput", "gpu_hours"] = "throughput"
    """What the planner minimises: step time, or the run's GPU-hours."""
    max_nodes: Positive | None = None
    """Over both roles; null: all nodes of the pools."""
    launch: Literal["auto", "hetjob", "hetstep", "ranks", "two_steps"] = "auto"
    """How Slurm starts both roles."""
    slurm: SlurmOptions = SlurmOptions()
    """sbatch options of this run."""
    cluster: PathText | Cluster
    """A path relative to this file, or the mapping itself."""

    @model_validator(mode="after")
    def pinned_gpus_agree(self) -> Self:
        for role in (self.teacher, self.student):
            pinned, layout = role.gpus, role.parallelism
            if pinned != "auto" and layout != "auto" and layout.gpus != pinned:
                word = type(role).__name__.lower()
                raise ValueError(f"{word}.gpus is {pinned} but {word}.parallelism multiplies to {layout.gpus}")
        return self

    @model_validator(mode="after")
    def tokens_are_files(self) -> Self:
        if self.data.format == "tokens" and isinstance(self.data.train, HubDataset):
            raise ValueError("data.format is tokens, which reads .npy files; data.train names a hub data set")
        return self
