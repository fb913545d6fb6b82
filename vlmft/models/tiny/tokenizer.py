"""The twins' tokenizer: byte-level BPE of 640 entries, with the special tokens of a family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

VOCABULARY = 640

# What the tokenizer learns its few hundred merges from.
TOKENIZER_TEXT = """
Is there a lesion in the left lung? Is there a mass in the right lobe of the liver? Is the heart enlarged? yes no Yes No
What organ is shown in this image? Which side is affected? How many nodules are visible? What plane is this? axial
Is there evidence of pneumothorax? What modality was used to take this picture? CT MRI X-ray ultrasound pathology
Where is the abnormality located? left right upper lower top bottom liver kidney lung brain spleen heart stomach colon
Is this a chest x-ray or a CT scan? What is the diagnosis? Does the picture contain a fracture? What stain was used?
none one two three four zero normal abnormal mild moderate severe present absent the a an of in on with and or to is are
Which view is this? frontal lateral posterior anterior What kind of cells are seen? hematoxylin and eosin tumor tissue
Is contrast used? arterial venous phase What color is the stained region? pink purple blue brown Is the bone intact?
Which organ does this slice show? Does this slice show the kidneys? Where in the slice does the focal lesion lie?
Is the scanner table visible? Is this a venous scan? Which contrast phase was scanned? How is the film exposed?
What part of the body was imaged? Is this a radiograph of the pelvis? How many screws are in place? Is a bone broken?
Has more than one screw been placed? Which stain was used? What kind of cells fill the field? Are these glandular cells?
How many mitotic figures are there? Are at least two cells dividing? Is the margin inked? Was trichrome the stain?
hand foot knee hip chest skull implant screw plate grade low high intermediate mitosis nucleus gland necrosis cyst
""".strip().splitlines()


def tokenizer(special_tokens: Sequence[str], eos_token: str, pad_token: str) -> Any:
    """A `PreTrainedTokenizerFast` whose first ids are `special_tokens`, in order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TOKENIZER_TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=eos_token,
        pad_token=pad_token,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
