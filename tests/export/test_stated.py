from kd_lightning.export.stated import placeless, stated

CONFIG = {
    "seed_everything": 3,
    "trainer": {"max_epochs": 2, "profiler": None, "logger": {"save_dir": "logs"}, "default_root_dir": "runs/e/a"},
    "model": {
        "init_args": {
            "student": {"name": "local-dir:/home/me/nets/small", "weights": "runs/e/b", "sha256": None},
            "teacher": {
                "big": {"name": "resnet18", "weights": "pretrained"},
                "old": {"name": "resnet10t", "weights": {"recipe": "/home/me/configs/teacher.yaml@epoch=3"}},
            },
            "criteria": {"kd": {"teacher": "big/logits", "weight": 0.9}, "ce": {"teacher": None}},
            "files": ["/tmp/a", "C:\\data\\b", "~/c", "kept"],
        }
    },
    "data": {"class_path": "ImageNetDataModule", "init_args": {"root": "data", "test_dir": "val"}},
    "experiment": "e",
    "run": "a",
    "checkpoints": {"best": "val/top1"},
}


def test_the_places_of_a_machine_are_left_out() -> None:
    assert stated(CONFIG) == {
        "seed_everything": 3,
        "trainer": {"max_epochs": 2},
        "model": {
            "init_args": {
                "student": {"name": "local-dir:small", "sha256": None},
                "teacher": {
                    "big": {"name": "resnet18", "weights": "pretrained"},
                    "old": {"name": "resnet10t", "weights": {"recipe": "teacher.yaml@epoch=3"}},
                },
                "criteria": {"kd": {"teacher": "big/logits", "weight": 0.9}, "ce": {"teacher": None}},
                "files": ["kept"],
            }
        },
        "data": {"class_path": "ImageNetDataModule", "init_args": {"test_dir": "val"}},
        "checkpoints": {"best": "val/top1"},
    }
    assert stated({}) == {}


def test_a_name_without_its_folder() -> None:
    assert placeless("resnet18.a1_in1k") == "resnet18.a1_in1k"
    assert placeless("hf-hub:timm/resnet18.a1_in1k") == "hf-hub:timm/resnet18.a1_in1k"
    assert placeless("local-dir:C:\\nets\\small") == "local-dir:small"
