"""Mistakes in recipe files, in overrides, and on the command line."""

from __future__ import annotations

from mistakes import GOOD, RECIPE, VARIANT, Mistake, folders, text

MISTAKES = [
    # recipe files
    Mistake(
        "no recipe file",
        "wrongg.py: no such recipe file in {here}; did you mean 'wrong.py'?",
        words="wrongg.py",
        changes="",
    ),
    Mistake(
        "no such module",
        (
            "own.wrong: no such recipe; there is no module 'own' in {here}; give the path of a recipe file, "
            "e.g. recipes/resnet50.py"
        ),
        words="own.wrong",
        changes="",
    ),
    Mistake(
        "recipe folder",
        "pets: no recipe; to write one for the data there: python -m launcher init pets",
        words="pets",
        files=folders(*GOOD),
    ),
    Mistake(
        "syntax error",
        "wrong.py:3: …: backbone=,",
        source="from launcher import Recipe\nrecipe = Recipe(\n    backbone=,\n)\n",
    ),
    Mistake(
        "import of a missing package",
        "wrong.py:1: ModuleNotFoundError: No module named 'timmm'",
        source="import timmm\n",
    ),
    Mistake(
        "error in the recipe",
        "wrong.py:10: AttributeError: …'nothing'…",
        source=RECIPE + "\nrecipe = tiny.nothing\n",
    ),
    Mistake(
        "no variable",
        "wrong.py: has no 'recipe'; did you mean 'recipes'?",
        source=RECIPE + "recipes = tiny\n",
    ),
    Mistake(
        "a function",
        "wrong.py: recipe must be a Recipe, and is a function; call it",
        source=RECIPE + "def recipe():\n    return tiny\n",
    ),
    Mistake(
        "name collision",
        (
            "json.py: its module name 'json' is also that of …json/__init__.py, so it cannot be imported; "
            "rename it, or move it into a folder that has an (empty) __init__.py and a name of its own"
        ),
        words="json.py",
        files=text("json.py", VARIANT.format(changes="seed=1")),
    ),
    Mistake(
        "unknown field",
        "wrong.py:9: Recipe.batchsize: Recipe has no field 'batchsize'; did you mean 'batch_size'?",
        changes="batchsize=32",
    ),
    Mistake(
        "unknown field of a part",
        (
            "wrong.py:9: AdamW.learning_rate: AdamW has no field 'learning_rate'; there are: lr, "
            "weight_decay, betas, eps, lr_batch_size"
        ),
        changes="optim=optim.AdamW(learning_rate=1e-3)",
    ),
    Mistake(
        "unknown part",
        "wrong.py:9: AttributeError: module 'launcher.recipe.heads' has no attribute 'Linea'",
        changes="head=heads.Linea()",
    ),
    Mistake(
        "missing field",
        "wrong.py:9: Torchvision.name: missing; Torchvision needs it",
        changes="backbone=backbones.Torchvision()",
    ),
    Mistake(
        "wrong type",
        "wrong.py:9: Recipe.batch_size='many': input should be a valid integer…",
        changes="batch_size='many'",
    ),
    Mistake(
        "wrong choice",
        "wrong.py:9: Recipe.mixed_precision='fp8': input should be 'auto', 'no', 'bf16' or 'fp16'",
        changes="mixed_precision='fp8'",
    ),
    Mistake(
        "not a part",
        (
            "wrong.py:9: Recipe.head='linear': should be heads.Linear(...), heads.MLP(...) or a part of your "
            "own; a str lacks build"
        ),
        changes="head='linear'",
    ),
    Mistake(
        "class instead of a value",
        "wrong.py:9: Recipe.backbone=<class 'tiny.TinyBackbone'>: a class; write TinyBackbone(...)",
        changes="backbone=TinyBackbone",
    ),
    Mistake(
        "another library's optimizer",
        (
            "wrong.py:9: Recipe.optim=<class 'torch.optim.rmsprop.RMSprop'>: a class that is no part; wrap it in a "
            "frozen dataclass of your own with 'lr: float = 1e-3', 'def base_lr(self, batch_size): return self.lr' and "
            "'def build(self, groups): return RMSprop(groups, lr=self.lr)' (see launcher/recipe/protocols.py)"
        ),
        changes="optim=__import__('torch').optim.RMSprop",
    ),
    Mistake(
        "another library's augmentation",
        (
            "wrong.py:9: Recipe.augment=Compose( ): should be transforms.Augment(...) or a part of your own; a Compose "
            "lacks build; wrap it in a frozen dataclass of your own with 'def build(self, preprocessing): return "
            "Compose(...)' (see launcher/recipe/protocols.py)"
        ),
        changes="augment=__import__('torchvision').transforms.Compose([])",
    ),
    Mistake(
        "out of range",
        "wrong.py:9: Linear.dropout=1.5: input should be less than 1",
        changes="head=heads.Linear(dropout=1.5)",
    ),
    Mistake(
        "several in one part",
        (
            "wrong.py:9: AdamW.lr=-1: input should be greater than 0",
            "wrong.py:9: AdamW.eps=0: input should be greater than 0",
        ),
        changes="optim=optim.AdamW(lr=-1, eps=0)",
    ),
    Mistake(
        "phase instead of plan",
        (
            "wrong.py:9: Recipe.freeze_plan=Phase(name='a', rules=(('*', 1.0),), epochs=1, "
            "norm_statistics='keep', patien...: one phase; a plan is a tuple of phases: (Phase(...),) with "
            "the comma"
        ),
        changes="freeze_plan=Phase(name='a', rules=(('*', 1.0),), epochs=1)",
    ),
    Mistake(
        "empty plan",
        (
            "wrong.py:9: Recipe.freeze_plan=(): no phase; a plan needs at least one, such as "
            "phases.full_finetune(epochs=10)"
        ),
        changes="freeze_plan=()",
    ),
    Mistake(
        "no epochs",
        "wrong.py:9: Phase.epochs=0: input should be greater than or equal to 1",
        changes="freeze_plan=phases.linear_probe(epochs=0)",
    ),
    Mistake(
        "positional arguments",
        "wrong.py:9: TypeError: …positional arguments…",
        changes="freeze_plan=phases.linear_probe(3)",
    ),
    # overrides
    Mistake(
        "override of an unknown field",
        "batch_sise: Recipe has no field 'batch_sise'; did you mean 'batch_size'?",
        words="wrong.py batch_sise=8",
        changes="",
    ),
    Mistake(
        "override of the wrong type",
        (
            "batch_size=big: should be a whole number",
            "optim.nesterov=maybe: should be true or false",
        ),
        words="wrong.py batch_size=big optim.nesterov=maybe",
        changes="",
    ),
    Mistake(
        "override of the wrong choice",
        "augment.preset=lite: should be 'light', 'trivial', 'randaugment' or 'none'; did you mean 'light'?",
        words="wrong.py augment.preset=lite",
        changes="",
    ),
    Mistake(
        "override out of range",
        "head.dropout=2.0: input should be less than 1",
        words="wrong.py head.dropout=2",
        changes="",
    ),
    Mistake(
        "override index",
        "freeze_plan.2.epochs: no item '2'; freeze_plan has items 0 to 1",
        words="wrong.py freeze_plan.2.epochs=5",
        changes="",
    ),
    Mistake(
        "override of structure",
        (
            "optim: is SGD(...), a part; change it in the recipe file, or override one of its fields: "
            "optim.lr, optim.momentum, optim.nesterov, optim.weight_decay, optim.lr_batch_size"
        ),
        words="wrong.py optim=adamw",
        changes="",
    ),
    Mistake(
        "override without =",
        "resume: not an override; write name=value, e.g. optim.lr=3e-4",
        words="wrong.py resume",
        changes="",
    ),
    Mistake(
        "override below a scalar",
        "batch_size.0: batch_size is 32 and has no fields",
        words="wrong.py batch_size.0=1",
        changes="",
    ),
    Mistake(
        "override twice",
        "seed: given twice: seed=1 and seed=2",
        words="wrong.py seed=1 seed=2",
        changes="",
    ),
    # command line
    Mistake(
        "unknown option",
        (
            "No such option: --epochs; fields of the recipe are set without dashes: optim.lr=3e-4; all "
            "options: python -m launcher train --help"
        ),
        words="wrong.py --epochs 3",
        changes="",
    ),
    Mistake(
        "unknown command",
        "trian: neither a command nor a recipe; did you mean 'train'?",
        words="trian wrong.py",
        changes="",
    ),
    Mistake(
        "no recipe",
        "no recipe given; e.g. python -m launcher recipes/digits.py (or --help)",
        words="",
    ),
    Mistake(
        "bad micro-batch",
        "--micro-batch 'two': must be a whole number from 1, or auto",
        words="wrong.py --micro-batch two",
        changes="",
    ),
]
