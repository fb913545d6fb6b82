"""Every key that vlmft owns, with its type and default; registered in Hydra's ConfigStore as `vlmft_schema`.

What belongs to TRL, PEFT and bitsandbytes (`method.trainer`, `method.peft`, `method.quantization`) is left open here
and checked by name and type against the installed libraries in `library_keys.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Dict, List, Optional

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf


class Task(Enum):
    train = "train"  # train, then evaluate
    eval = "eval"  # evaluate a model as it is, or the runs named in `runs`
    fetch = "fetch"  # download the model and the sets that are chosen, and look them through
    check = "check"  # look at every row and picture as the model would read it; nothing is trained
    plan = "plan"  # memory of the run by part, and whether it fits; nothing is loaded
    dry_run = "dry_run"  # five steps on the largest rows and one evaluation batch; nothing is kept


class AnswerStyle(Enum):
    plain = "plain"  # answer
    think = "think"  # <think>thought</think> answer; a row without a thought has an empty one, as GLM-4.5V writes it
    answer = "answer"  # <answer>answer</answer>
    think_answer = "think_answer"  # <think>thought</think><answer>answer</answer>; a row without a thought: as `answer`


class Dtype(Enum):
    auto = "auto"  # bfloat16 where the device has it (full fine-tuning keeps float32 master weights), else float32
    float32 = "float32"
    bfloat16 = "bfloat16"


class BadRows(Enum):
    refuse = "refuse"
    drop = "drop"


class OverLong(Enum):
    refuse = "refuse"
    drop = "drop"
    shrink_image = "shrink_image"


class Images(Enum):
    use = "use"
    ignore = "ignore"  # ask without the pictures, of a model that reads text only


class Algorithm(Enum):
    sft = "sft"  # supervised: the answers of the rows are learnt (TRL's SFTTrainer)
    dpo = "dpo"  # preferences: the chosen answers rather than the rejected ones (TRL's DPOTrainer)


class Packing(Enum):
    image = "image"  # questions about the same pictures share one sequence: the same loss, several times faster
    none = "none"  # every question by itself


class Closed(Enum):
    generate = "generate"  # closed and multiple-choice questions are answered like all others
    likelihood = "likelihood"  # … by the likeliest of the options (of the closed training answers): nothing to parse


class Backend(Enum):
    transformers = "transformers"  # the model is loaded here
    server = "server"  # … is asked over HTTP, in the form of OpenAI's chat completions


class Device(Enum):
    auto = "auto"  # the first free GPU, else the CPU
    cpu = "cpu"
    cuda = "cuda"


class Strategy(Enum):
    ddp = "ddp"  # every process holds the whole model
    fsdp = "fsdp"  # PyTorch's FSDP2: weights, gradients and optimiser states in shards
    deepspeed = "deepspeed"  # ZeRO, as `hardware.deepspeed` says


class SplitModel(Enum):
    no = "no"
    auto = "auto"  # over all GPUs in sight, layer by layer, by one process: to evaluate, ask or export


@dataclass
class Freeze:
    vision: bool = False
    projector: bool = False
    llm: bool = False


@dataclass
class Model:
    name: str = ""
    path: str = ""  # a repository id on the Hub, or a local folder
    revision: Optional[str] = None  # a commit, tag or branch of the repository
    tiny: Optional[str] = None  # write a tiny random twin of this architecture into `path` first
    dtype: Dtype = Dtype.auto
    attention: str = "sdpa"
    answer_style: AnswerStyle = AnswerStyle.plain
    min_pixels: Optional[int] = None  # per image, in pixels; None: the processor's own
    max_pixels: Optional[int] = None
    freeze: Freeze = field(default_factory=Freeze)
    lora_targets: Optional[str] = None  # a pattern over module names; None: `method.peft.target_modules`
    trust_remote_code: bool = False


@dataclass
class QuestionSet:
    """One publisher's set: where it lies, how it is read, and which of its rows are used."""

    name: str = ""
    format: str = ""  # a file of vlmft/data/sources
    path: Optional[str] = None  # the publisher's folder
    hub: Optional[str] = None  # the dataset repository on the Hugging Face Hub that is used where `path` is no folder
    revision: Optional[str] = None  # a commit, tag or branch of that repository
    image_root: Optional[str] = None  # None: the format's own place below `path`
    language: Optional[str] = None  # keep the rows of one language (en, zh); None: all
    splits: Dict[str, str] = field(default_factory=dict)  # split -> file below `path`, for formats of one file a split
    max_rows: Optional[int] = None  # at most so many training questions (whole images, seeded)
    percent: float = 100.0  # of the training questions (whole images, seeded), before `max_rows`
    max_test_rows: Optional[int] = None
    bad_rows: BadRows = BadRows.refuse
    absolute_paths: bool = False  # allow image paths that leave `image_root`
    weight: float = 1.0  # in a mixture: how often each row is seen, 0.5 = every other one, 2.0 = twice
    tasks: List[str] = field(default_factory=list)  # keep the rows of these forms of answer (question.TASKS); []: all
    modalities: List[str] = field(default_factory=list)  # keep the rows of these modalities; []: all
    images: Images = Images.use
    # Of some formats only; their files say which. Anything else than the default is refused of the others.
    include: List[str] = field(default_factory=list)  # the collections below `path` to read; []: all
    box_space: str = "0-1000"  # what the boxes of a target are measured in: 0-1000 of width and height, or pixels
    options: bool = True  # the options of a multiple-choice question stand in the prompt
    shuffle_options: bool = False  # in an order drawn for each question, so that no letter is the likelier one
    reasoning: bool = False  # the prompt asks to think step by step before the answer
    knowledge: Optional[str] = None  # file or folder of the texts that some questions need
    max_knowledge_words: int = 256


@dataclass
class Dataset(QuestionSet):
    validation: Optional[str] = None  # a split, a file of conversations, or a fraction of the training images (0.1)
    over_long: OverLong = OverLong.refuse
    normalize_terms: bool = False  # train on one form of each synonym (vlmft/evaluation/terms.yaml)
    streaming: bool = False  # read the training rows while training, for files larger than memory
    buffer_size: int = 1000  # rows that a streamed set is shuffled in
    sets: Dict[str, QuestionSet] = field(default_factory=dict)  # a mixture's members; empty for a single set


def _open() -> Any:
    """A node that takes new keys without a `+`; library_keys says which are right."""
    return DictConfig({}, flags={"struct": False})


@dataclass
class LearningRates:
    """Of parts that learn at another rate than `method.trainer.learning_rate`, on the same schedule."""

    vision: Optional[float] = None
    projector: Optional[float] = None


@dataclass
class EarlyStopping:
    patience: Optional[float] = None  # evaluations without improvement; below 1: a share of all steps; null: never stop
    threshold: float = 0.0  # less than this is no improvement


@dataclass
class Method:
    name: str = ""
    algorithm: Algorithm = Algorithm.sft
    batch_size: int = 16  # questions (under DPO pairs) per optimiser step, over all ranks and accumulation
    packing: Packing = Packing.image
    max_questions_per_row: int = 16  # that share a sequence under packing=image
    max_row_tokens: int = 4096  # a longer row is handled by `dataset.over_long`; image tokens are never cut
    trainer: Dict[str, Any] = field(default_factory=_open)  # trl.SFTConfig; under DPO trl.DPOConfig
    learning_rates: LearningRates = field(default_factory=LearningRates)
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    peft: Optional[Dict[str, Any]] = field(default_factory=_open)  # peft.LoraConfig; null: every weight is trained
    quantization: Optional[Dict[str, Any]] = field(default_factory=_open)  # transformers.BitsAndBytesConfig


@dataclass
class Hardware:
    name: str = ""
    device: Device = Device.auto
    micro_batch: Any = "auto"  # questions per forward pass: auto, or a number that divides method.batch_size
    slots: Optional[int] = None  # runs at the same time; None: one per free GPU, one on a CPU
    gpu_memory: Optional[float] = None  # GB of the GPU that task=plan is asked about; None: the one found here
    processes: Any = 1  # on each machine: a number, or auto (one for each GPU that is free)
    nodes: int = 1  # machines that work on one run together
    strategy: Strategy = Strategy.ddp  # how several processes share a model
    fsdp: Dict[str, Any] = field(default_factory=_open)  # `fsdp_config` of transformers' TrainingArguments
    deepspeed: Dict[str, Any] = field(default_factory=_open)  # DeepSpeed's own settings
    split_model: SplitModel = SplitModel.no
    # Of Slurm. Null leaves a thing to the cluster; time and memory, to the kind of job.
    time: Optional[str] = None  # as sbatch takes it: 24:00:00, 1-12:00:00, or minutes
    memory: Optional[int] = None  # GB on each machine
    gpus: Optional[int] = None  # on each machine; None: as many as processes
    gres: Optional[str] = None  # asked for in the place of gpus, such as gpu:a100:2
    cpus: Optional[int] = None  # of each machine
    partition: Optional[str] = None
    account: Optional[str] = None
    qos: Optional[str] = None
    constraint: Optional[str] = None
    exclude: Optional[str] = None
    array_parallelism: int = 256  # jobs of a sweep that may run at a time
    setup: List[str] = field(default_factory=list)  # lines before the command, such as module load cuda
    additional_parameters: Dict[str, Any] = field(default_factory=_open)  # any other option of sbatch
    signal_delay: int = 120  # seconds before its end that a job is told, to save and be queued again
    max_timeouts: int = 20  # times that a job that ran out of time is queued again
    wait: bool = True  # until the jobs have ended; false: submit and return


@dataclass
class Generation:
    max_new_tokens: Any = "auto"  # auto: 64, or 2048 where the model thinks first
    do_sample: bool = False
    temperature: Optional[float] = None
    top_p: Optional[float] = None
    batch_size: int = 32  # questions answered together
    packing: Packing = Packing.image  # questions about the same pictures share them (greedy decoding only)


@dataclass
class Judge:
    """Another model that says of open answers whether they mean the same as the gold: beside the rule, never for it."""

    url: Optional[str] = None  # of its server, as eval.url; null: there is no judge
    served_model: Optional[str] = None
    api_key_env: str = "OPENAI_API_KEY"


@dataclass
class Eval:
    name: str = ""
    own: bool = False  # also the test split of the run's own dataset
    baseline: bool = False  # also the model as it is, before training, in a run of its own
    sets: Dict[str, QuestionSet] = field(default_factory=dict)
    protocols: List[str] = field(default_factory=lambda: ["normalized", "strict"])
    split: str = "test"  # the split that is answered; another one is for vlmft pairs, and stands in no report
    max_rows: Optional[int] = None  # of each set
    bad_rows: BadRows = BadRows.refuse  # drop: of each set, whatever the set itself says
    closed: Closed = Closed.generate
    ablations: List[str] = field(default_factory=list)  # passes without the pictures: blank, shuffled
    debug_matches: Any = 0  # print so many comparisons of each set (5 for true)
    generation: Generation = field(default_factory=Generation)
    backend: Backend = Backend.transformers
    # Of backend=server; the last three hold for the judge's server too.
    url: Optional[str] = None  # such as http://localhost:8000/v1
    served_model: Optional[str] = None  # by the name that the server gives it
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the server's key, if it asks for one
    request: Dict[str, Any] = field(default_factory=_open)  # further fields of each request, in the server's own names
    concurrency: int = 8  # requests at a time
    retries: int = 6  # of a request that failed for no reason of its own
    timeout: float = 600.0  # seconds for one answer
    judge: Judge = field(default_factory=Judge)


@dataclass
class Tracking:
    wandb: bool = False  # also log to Weights & Biases (offline without a login)
    project: str = "vlmft"
    name: Optional[str] = None  # None: the run's own
    group: Optional[str] = None  # None: the sweep's name
    tags: List[str] = field(default_factory=list)


@dataclass
class Config:
    task: Task = Task.train
    # A group that is not chosen has an empty name. It is no null: Hydra sets keys such as dataset.max_rows before a
    # sweep over dataset=a,b has chosen one.
    model: Model = field(default_factory=Model)
    dataset: Dataset = field(default_factory=Dataset)
    method: Method = field(default_factory=Method)
    hardware: Hardware = field(default_factory=Hardware)
    eval: Eval = field(default_factory=Eval)
    paths: Dict[str, str] = field(default_factory=dict)
    tracking: Tracking = field(default_factory=Tracking)
    seed: int = 0
    sweep: str = ""  # names the report of a sweep; else its experiment does, or a hash of its axes
    runs: List[str] = field(default_factory=list)  # to evaluate: run directories, adapter folders, model folders
    models_dir: Optional[str] = None  # a folder of such, all of which are evaluated
    init_from: Optional[str] = None  # a run, adapter folder or model folder whose weights are trained on (or evaluated)
    stages: Dict[str, Dataset] = field(default_factory=dict)  # trained on in turn, each a run from the one before
    check: bool = True  # look at rows and pictures before training
    samples: bool = False  # small drawn sets in the publishers' forms take the place of the published ones
    label: str = ""
    force: bool = False
    debug: bool = False
    log_level: str = "info"


def read_config(file: Path) -> Config:
    """The typed config of a saved, resolved file. Raises OmegaConf's errors for keys of another version."""
    config: Config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(file)))  # type: ignore[assignment]
    return config


ConfigStore.instance().store(name="vlmft_schema", node=Config)
# Hydra 1.3 copies the whole store, this schema with it, each time it looks up the options of a group, and itself copies
# what it loads from the store: half a second of every command.
setattr(ConfigStore.instance(), "__deepcopy__", lambda memo: ConfigStore.instance())  # noqa: B010
if not (Path(__file__).parents[1] / "conf" / "local.yaml").is_file():
    # Stands in for the absent file; beside it, Hydra would take this for its schema and warn.
    ConfigStore.instance().store(name="local", node={})
