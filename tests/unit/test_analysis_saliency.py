import pytest
import torch

from localprop.analysis.saliency import saliency_maps, to_image, top_labels
from localprop.functional.dictionary import pool_embeddings


def test_saliency__lights_where_the_embedding_stands_and_nowhere_else() -> None:
    torch.manual_seed(0)
    frame = torch.linalg.qr(torch.randn(8, 3))[0].T  # orthonormal: a label's embedding says nothing for another
    h = torch.zeros(1, 8, 5, 5)
    h[0, :, 1, 3] = 2 * frame[1]
    maps = saliency_maps(h, frame)
    assert maps.shape == (1, 3, 5, 5)
    assert maps[0, 1].nonzero().tolist() == [[1, 3]]
    assert float(maps[0, 1, 1, 3]) == pytest.approx(2)
    assert maps[0, [0, 2]].abs().max() < 1e-6
    assert top_labels(maps, 1).tolist() == [[1]]
    image = to_image(maps[:, 1], (20, 20))[0]
    row, column = divmod(int(image.argmax()), 20)
    assert (4 <= row < 8, 12 <= column < 16) == (True, True)
    assert float(image.max()) == 1
    assert float(image[12:].max()) == 0


def test_saliency__its_mean_is_the_logit_by_pooled_embeddings() -> None:
    torch.manual_seed(0)
    h, t = torch.randn(6, 4, 3, 7), pool_embeddings(torch.randn(10, 12), 4)
    torch.testing.assert_close(saliency_maps(h, t).mean((2, 3)), h.mean((2, 3)) @ t.T)


def test_saliency__top_labels_are_best_first() -> None:
    maps = torch.tensor([1.0, 5.0, 3.0])[None, :, None, None].expand(2, 3, 4, 4)
    assert top_labels(maps).tolist() == [[1, 2], [1, 2]]
    assert top_labels(maps[:, :1]).tolist() == [[0], [0]]


def test_saliency__of_what_speaks_against_a_label_is_dark() -> None:
    assert to_image(-torch.ones(2, 3, 3), (6, 6)).abs().max() == 0


def test_saliency__refuses_another_width() -> None:
    with pytest.raises(ValueError, match="of one width"):
        saliency_maps(torch.randn(1, 8, 2, 2), torch.randn(3, 4))
