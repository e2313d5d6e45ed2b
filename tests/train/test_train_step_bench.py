"""The bench of a training step and that of the loader run, on little."""

from dataclasses import replace

from bench import train_step
from mtkernels.train.presets import PRESETS


def test_parts_of_a_step():
    config = replace(PRESETS["cifar10-1000-quick"].config, arch="convnet", width=4)
    seconds = train_step.measure(config, steps=2)
    assert list(seconds) == list(train_step.PARTS) and all(len(times) == 2 for times in seconds.values())
    title, *_, average = train_step.markdown(config, seconds).splitlines()
    assert title.startswith("convnet, batches of 256: ") and average.startswith("| average | ")


def test_loaders_give_batches_of_two_views(tmp_path):
    from bench import loader

    root = loader.write_jpegs(tmp_path, 4, width=64, height=48)
    for load in (loader.ours, loader.plain):
        views = next(load(root, batch_size=3, workers=0))
        assert views.shape == (2, 3, 3, 224, 224) and 0.3 < views.std() < 3
