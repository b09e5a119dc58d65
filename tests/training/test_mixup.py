import torch

from launcher.training.images import Batch
from launcher.training.mixup import mix


def batch_of(indices: list[int]) -> Batch:
    # Each sample's picture is constant, so shares can be read off its pixels.
    images = torch.tensor(indices, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()
    return Batch(images, torch.tensor([i % 2 for i in indices]), torch.tensor(indices))


def mixed(indices: list[int], mixup: float | None, cutmix: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    batch = batch_of(indices)
    encoded = torch.nn.functional.one_hot(batch.targets, 2).float()
    (images,), targets = mix(
        (batch.images,), batch.indices, encoded, mixup_alpha=mixup, cutmix_alpha=cutmix, seed=0, epoch=3
    )
    return images, targets


def test_mixup_blends_neighbours_and_targets_by_the_same_share() -> None:
    images, targets = mixed([10, 21, 30, 41], 1.0, None)
    share = (images[0, 0, 0, 0] - 21) / (10 - 21)
    assert 0 < share < 1
    assert torch.allclose(targets[0], torch.tensor([share, 1 - share]), atol=1e-5)
    assert images[0].unique().numel() == 1


def test_cutmix_shares_are_areas() -> None:
    images, targets = mixed([10, 21], None, 1.0)
    for place, own in ((0, 10), (1, 21)):
        area = float((images[place, 0] == own).float().mean())
        assert abs(float(targets[place, own % 2]) - area) < 1e-6


def test_the_split_of_the_batch_does_not_matter() -> None:
    for mixup, cutmix in ((0.5, None), (None, 1.0), (0.5, 1.0)):
        whole = mixed([10, 21, 30, 41, 50, 61], mixup, cutmix)
        parts = [mixed(indices, mixup, cutmix) for indices in ([10, 21], [30, 41], [50, 61])]
        assert torch.equal(whole[0], torch.cat([images for images, _ in parts]))
        assert torch.equal(whole[1], torch.cat([targets for _, targets in parts]))


def test_a_last_sample_without_neighbour_stays_and_an_epoch_draws_anew() -> None:
    images, _ = mixed([10, 21, 30], 1.0, None)
    assert torch.equal(images[2], batch_of([30]).images[0])
    batch = batch_of([10, 21])
    given = (batch.images,), batch.indices, torch.eye(2)
    draws = [mix(*given, mixup_alpha=1.0, cutmix_alpha=None, seed=0, epoch=e)[0][0] for e in range(2)]
    assert not torch.equal(draws[0], draws[1])


def test_all_that_crosses_for_a_sample_is_blended_by_the_same_share() -> None:
    indices = torch.tensor([10, 21])
    vectors, maps = indices[:, None].float().expand(-1, 5), indices[:, None, None, None].float().expand(-1, 2, 3, 3)
    (some, others), _ = mix((vectors, maps), indices, torch.eye(2), mixup_alpha=1.0, cutmix_alpha=None, seed=0, epoch=0)
    for place in range(2):
        assert torch.cat([some[place].flatten(), others[place].flatten()]).unique().numel() == 1
