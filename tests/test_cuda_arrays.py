"""Arrays on a GPU are read without a copy."""

import numpy as np
import pytest
from cuda_arrays import ByDLPack, ByInterface
from networks import densenet
from test_cuda import build, noise, weights_of

import dice
from dice import _core
from dice.arrays import on_gpu
from dice.detectors import KNN, RMDS, Mahalanobis, Residual, ViM
from dice.errors import InputError


@pytest.fixture(params=[ByInterface, ByDLPack])
def put(request, emulated):
    """Puts an array on the emulated device."""
    return lambda array, **how: request.param(emulated, array, **how)


def network(device="cuda"):
    return build(weights_of(densenet((2, 2), 3), 8), device=device)


def test_images_and_features(put):
    net, images = network(), noise(2, 8)
    want_h, want_z = net.forward(images)
    assert net.forward(put(images))[1].tobytes() == want_z.tobytes()
    floats = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    assert net.forward(put(floats))[1].tobytes() == net.forward(floats)[1].tobytes()
    linear = _core.Linear(net.weight, net.bias, device="cuda")
    want = linear.forward(want_h, np.inf, "energy")[0]
    assert linear.forward(put(want_h), np.inf, "energy")[0].tobytes() == want.tobytes()
    assert linear.forward(put(want_h[:0]), np.inf, "energy")[0].shape == (0,)


def test_what_is_refused(put):
    net, images = network(), noise(2, 8)
    linear = _core.Linear(net.weight, net.bias, device="cuda")
    with pytest.raises(InputError, match="images: lives on a GPU"):
        network("cpu").forward(put(images))
    for wrong in (images.astype(np.float64), images[0], images[..., :2]):
        with pytest.raises(InputError, match=r"want uint8 \(N, H, W, 3\)"):
            net.forward(put(wrong))
    with pytest.raises(InputError, match="at most 4 dimensions"):
        net.forward(put(images[None]))
    with pytest.raises(InputError, match=r"h: on the GPU, want float32 with 2 dimensions"):
        linear.forward(put(images), np.inf, "energy")
    with pytest.raises(InputError, match="h: got 3 features"):
        linear.forward(put(np.ones((2, 3), np.float32)), np.inf, "energy")
    for bad in (np.nan, np.inf, -np.inf):
        floats = np.zeros((2, 3, 8, 8), np.float32)
        floats[1, 2, 3, 4] = bad
        with pytest.raises(InputError, match="images: holds NaN or infinity"):
            net.forward(put(floats))


def test_strides(emulated):
    images = noise(2, 8)
    net = network()
    there = ByInterface(emulated, images)
    there.__cuda_array_interface__["strides"] = (192, 24, 3, 1)
    want = net.forward(images)[1].tobytes()
    assert net.forward(there)[1].tobytes() == want
    assert net.forward(ByDLPack(emulated, images, strides=(192, 24, 3, 1)))[1].tobytes() == want
    assert net.forward(ByDLPack(emulated, images[:1], strides=(7, 24, 3, 1)))[1].shape == (1, len(net.bias))
    for wrong in ((1, 2, 3, 4), (192, 3, 24, 1)):
        there.__cuda_array_interface__["strides"] = wrong
        for array in (there, ByDLPack(emulated, images, strides=wrong)):
            with pytest.raises(InputError, match="images: the array on the GPU must be C-contiguous"):
                net.forward(array)


def test_descriptions_that_no_kernel_survives(emulated):
    net, floats = network(), np.zeros((2, 3, 8, 8), np.float32)

    def described(**how):
        array = ByInterface(emulated, floats)
        array.__cuda_array_interface__ |= how
        return array

    there = described().__cuda_array_interface__["data"][0]
    negative = ByDLPack(emulated, floats)
    negative._shape[0] = -2
    for wrong in (
        described(data=(there + 2, False)),
        described(shape=(-2, 3, 8, 8)),
        described(mask=described()),
        negative,
    ):
        with pytest.raises(
            InputError, match="images: the array on the GPU must be C-contiguous and aligned, without a mask"
        ):
            net.forward(wrong)
    with pytest.raises(InputError, match="images of 32768 x 32769 pixels are too large for the device"):
        net.forward(described(typestr="|u1", shape=(1, 1 << 15, (1 << 15) + 1, 3)))


def test_arrays_of_another_device(put, emulated, monkeypatch):
    """NaN is searched on the device, where kernels can read the array, and the array is then copied."""
    monkeypatch.setenv("DICE_EMULATED_DEVICES", "2")
    rng = np.random.default_rng(2)
    weight, bias, mean = (
        rng.standard_normal((5, 7)).astype(np.float32),
        np.zeros(5, np.float32),
        rng.random(7),
    )
    h, floats = rng.random((30, 7), np.float32), rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    net, distances = network(), Mahalanobis(device="cuda").fit(h)

    def act(images, floats, weight, bias, h):
        return [
            net.forward(images)[1],
            net.forward(floats)[1],
            _core.device_moments(h, "cuda")[1],
            _core.device_rank(mean, weight, 70, False, "cuda")[1],
            distances.score_samples(h),
            dice.DICE(weight, bias, 50, mean=mean, device="cuda").score_samples(h),
        ]

    arrays = noise(2, 8), floats, weight, bias, h
    want = act(*arrays)
    emulated.emulated_set_device(1)
    there = [put(array) for array in arrays]
    emulated.emulated_set_device(0)
    for got, expected in zip(act(*there), want, strict=True):
        assert got.tobytes() == expected.tobytes()


def test_dlpack_is_borrowed_once_and_given_back(emulated):
    h = np.ones((3, 4), np.float32)
    linear = _core.Linear(np.ones((2, 4), np.float32), np.zeros(2, np.float32), device="cuda")
    array = ByDLPack(emulated, h)
    assert on_gpu(array)
    assert linear.forward(array, np.inf, "energy")[0].shape == (3,)
    assert (array.asked, array.given_back) == ([1], 1)  # the default stream waits for what makes the array
    with pytest.raises(InputError, match="want float32"):
        linear.forward(wrong := ByDLPack(emulated, h.astype(np.float64)), np.inf, "energy")
    assert wrong.given_back == 1

    class Refusing(ByDLPack):
        def __dlpack__(self, *, stream=None):
            raise BufferError("needs a gradient")

    with pytest.raises(InputError, match="^h: the array on the GPU cannot be had: needs a gradient$"):
        linear.forward(Refusing(emulated, h), np.inf, "energy")


def test_an_interfaces_stream_is_waited_for(emulated):
    h = np.ones((3, 4), np.float32)
    linear = _core.Linear(np.ones((2, 4), np.float32), np.zeros(2, np.float32), device="cuda")
    for stream in (1, 2):
        assert linear.forward(ByInterface(emulated, h, stream=stream), np.inf, "energy")[0].shape == (3,)


def test_on_gpu_looks_at_the_device():
    class OnHost:
        def __dlpack_device__(self):
            return 1, 0

    assert not on_gpu(OnHost()) and not on_gpu(np.ones(3)) and not on_gpu([1.0])


def test_a_parameter_that_wants_a_gradient_is_refused(emulated):
    """As torch's are: W of a model's last layer, not detached."""

    class Parameter(ByDLPack):
        @property
        def __cuda_array_interface__(self):
            raise RuntimeError("requires grad")

        def __dlpack__(self, *, stream=None):
            raise BufferError("use tensor.detach()")

    weight = np.ones((2, 4), np.float32)
    detector = dice.DICE(
        Parameter(emulated, weight), np.zeros(2, np.float32), 50, mean=np.ones(4), device="cuda"
    )
    with pytest.raises(InputError, match=r"^W: the array on the GPU cannot be had: use tensor.detach\(\)$"):
        detector.score_samples(weight)


def test_ranking_takes_weights_where_they_are(put):
    rng = np.random.default_rng(1)
    mean, weight = rng.random(57), rng.standard_normal((31, 57)).astype(np.float32)
    want = _core.device_rank(mean, weight, 70, False, "cuda")
    got = _core.device_rank(mean, put(weight), 70, False, "cuda")
    assert got[0] == want[0]
    np.testing.assert_array_equal(got[1], want[1])
    with pytest.raises(InputError, match="W: holds NaN"):
        _core.device_rank(mean, put(weight * np.nan), 70, False, "cuda")


def test_dice_with_everything_on_the_device(put):
    rng = np.random.default_rng(5)
    weight, bias = rng.standard_normal((5, 7)).astype(np.float32), rng.standard_normal(5).astype(np.float32)
    h = np.abs(rng.standard_normal((30, 7))).astype(np.float32)
    for p in (None, 50, 90):
        here = dice.DICE(weight, bias, p, device="cuda").fit(h)
        there = dice.DICE(put(weight), put(bias), p, device="cuda").fit(put(h))
        assert there.mean_.tobytes() == here.mean_.tobytes()
        np.testing.assert_array_equal(there.keep_, here.keep_)
        assert there.score_samples(put(h)).tobytes() == here.score_samples(h).tobytes()
    with pytest.raises(InputError, match="W: lives on a GPU; copy it to the host"):
        dice.DICE(put(weight), put(bias), None).score_samples(h)
    with pytest.raises(InputError, match="b: got 4 values"):
        _core.Linear(put(weight), put(bias[:4]), device="cuda")
    with pytest.raises(InputError, match="b: on the GPU, want float32 with 1 dimension"):
        _core.Linear(put(weight), put(weight), device="cuda")


def test_dice_refuses_features(put):
    rng = np.random.default_rng(5)
    weight, bias = rng.standard_normal((5, 7)).astype(np.float32), np.zeros(5, np.float32)
    h = rng.standard_normal((30, 7)).astype(np.float32)
    detector = dice.DICE(weight, bias, contribution="abs", device="cuda").fit(put(h))
    assert detector.score_samples(put(h)).tobytes() == detector.score_samples(h).tobytes()
    h[3, 4] = np.nan
    with pytest.raises(InputError, match="h: holds NaN"):
        detector.partial_fit(put(h))
    with pytest.raises(InputError, match="h: holds NaN"):
        detector.score_samples(put(h))
    with pytest.raises(InputError, match="h: lives on a GPU"):
        dice.DICE(weight, bias, None).score_samples(put(h[:3]))
    with pytest.warns(UserWarning, match="features below 0"):
        assert dice.DICE(weight, bias, device="cuda").fit(h[:3]).percentile_


def test_other_scores(put):
    rng = np.random.default_rng(6)
    weight, bias = rng.standard_normal((5, 12)).astype(np.float32), rng.standard_normal(5).astype(np.float32)
    h = rng.standard_normal((60, 12)).astype(np.float32)
    for detector in (
        Mahalanobis(device="cuda"),
        RMDS(device="cuda"),
        Residual(device="cuda"),
        ViM(weight, bias, device="cuda"),
    ):
        want = detector.fit(h).score_samples(h)
        assert detector.score_samples(put(h)).tobytes() == want.tobytes()
        with pytest.raises(InputError, match="got 11 features"):
            detector.score_samples(put(h[:, :11]))
        with pytest.raises(InputError, match="h: holds NaN"):
            detector.score_samples(put(h * np.nan))
    with pytest.raises(InputError, match="h: lives on a GPU"):
        Mahalanobis().fit(h).score_samples(put(h))
    with pytest.raises(InputError, match="h: lives on a GPU"):  # its reductions are the host's
        KNN(device="cuda").fit(h).score_samples(put(h))
