"""A data set with a name of its own, pressed."""

from recipes.addition import Addition, Edit, tests

ADDITION = Addition(
    recipe="A data set",
    edits=[
        Edit(
            "dice/images/datasets.py",
            '    "inat": f"{_OOD}/iNaturalist",\n',
            after='    "pressed": f"{_OOD}/pressed",\n',
        ),
        Edit(
            "dice/images/sources.py",
            '    "resnet50": Item(\n',
            before="""    "pressed": _archive(
        f"{_OOD}/pressed", "https://example.org/pressed.tar.gz", "d41d8cd98f00b204e9800998ecf8427e"
    ),
""",
        ),
        Edit(
            "datasets/README.md",
            "| `TinyImageNet32` |",
            before="| `pressed` | `datasets/ood_datasets/pressed/` | pressed flowers "
            "| [example](https://example.org/pressed.tar.gz) | md5 `d41d8cd98f00b204e9800998ecf8427e` |\n",
        ),
        Edit(
            "tests/test_datasets.py",
            "def test_default_ood():",
            before="""def test_pressed_flowers(tmp_path):
    with pytest.raises(MissingSet, match="pressed is not there.*`dice download pressed` fetches it"):
        open_set("pressed", tmp_path)
    draw(tmp_path / "datasets/ood_datasets/pressed/rose/1.png", 7)
    images = open_set("pressed", tmp_path)
    assert images.name == "pressed" and images.labels.tolist() == [0]
    assert collect(images, CIFAR, 2)[1].max() == 7


""",
        ),
    ],
    checks=[
        tests("test_datasets.py", "pressed or default_ood"),
        ["-c", "from dice.images.datasets import known_sets; assert 'pressed' in known_sets()"],
    ],
)
