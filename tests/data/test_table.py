import numpy as np
import pytest

from wazuka.data import open_images
from wazuka.data.table import natural, read_labels

from .pictures import save
from .test_folder import labels_by_name, sentence

ROWS = [("a.png", "cat"), ("sub/b.png", "dog")]


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("a.png", "sub/b.png", "sub/c.png")):
        save(tmp_path / "pets" / name, i)
    return tmp_path / "pets"


def opened(folder, text: str | bytes, encoding: str = "utf-8"):
    path = folder.parent / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return labels_by_name(open_images(folder, path).train)


EXPECTED = {"a.png": "cat", "sub/b.png": "dog", "sub/c.png": None}


@pytest.mark.parametrize(
    "header",
    [
        *("file,label", "File Name,Class", "FILENAME,category", "image_id,target", "path,class_name", "img,y"),
        *('"image","label"', "Image Path,Label", "filename,diagnosis", "photo_file,label"),
    ],
)
def test_usual_headers(folder, header):
    assert opened(folder, f"{header}\na.png,cat\nsub/b.png,dog\n") == EXPECTED


def test_columns_in_any_order_with_others_between(folder):
    assert opened(folder, "label,width,file,by\ncat,3,a.png,me\ndog,4,sub/b.png,you\n") == EXPECTED


def test_no_header(folder):
    assert opened(folder, "a.png,cat\nsub/b.png,dog\n") == EXPECTED
    assert opened(folder, "cat;a.png\ndog;sub/b.png\n") == EXPECTED


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_separators(folder, mark):
    assert opened(folder, f"file{mark}label\na.png{mark}cat\nsub/b.png{mark}dog\n") == EXPECTED
    assert opened(folder, f"sep={mark}\nfile{mark}label\na.png{mark}cat\nsub/b.png{mark}dog\n") == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings(folder, encoding):
    assert opened(folder, "file,label\na.png,Grün\nsub/b.png,Süß\n", encoding)["a.png"] == "Grün"


def test_windows_line_ends_and_paths(folder):
    assert opened(folder, "file,label\r\n.\\a.png,cat\r\nsub\\b.png,dog\r\n\r\n") == EXPECTED


def test_absolute_paths_of_this_and_of_another_computer(folder):
    assert opened(folder, f"file,label\n{folder}/a.png,cat\n{folder}/sub/b.png,dog\n") == EXPECTED
    for start in ("C:\\Users\\me\\pets", "D:\\old"):
        assert opened(folder, f"file,label\n{start}\\a.png,cat\n{start}\\sub\\b.png,dog\n") == EXPECTED


def test_bare_names_stems_and_other_case_where_they_are_unique(folder):
    assert opened(folder, "file,label\na.png,cat\nb.png,dog\n") == EXPECTED
    assert opened(folder, "id,label\na,cat\nb,dog\n") == EXPECTED
    assert opened(folder, "file,label\nA.PNG,cat\nSUB/B.png,dog\n") == EXPECTED


def test_accents_composed_or_not(folder):
    save(folder / "cafe\u0301.png", 7)  # as macOS writes it
    assert opened(folder, "file,label\ncaf\u00e9.png,cat\nb.png,dog\n")["cafe\u0301.png"] == "cat"


def test_empty_labels_mean_unlabeled(folder):
    text = "file,label\na.png,cat\nsub/b.png,dog\nsub/c.png,{}\n"
    for empty in ("", " ", "unlabeled", "?", "NaN", "-1"):
        assert opened(folder, text.format(empty)) == EXPECTED
    assert opened(folder, "file,label\na.png,cat\nsub/b.png,dog\nsub/c.png\n") == EXPECTED


def test_a_split_column_holds_out(folder):
    path = folder / "labels.csv"
    path.write_text("file,label,split\na.png,cat,train\nsub/b.png,dog,train\nsub/c.png,dog,TEST\n")
    data = open_images(folder, path)
    assert labels_by_name(data.test) == {"sub/c.png": "dog"}
    assert len(data.train) == 2
    assert data.skipped == (), "the label file is no picture"
    path.write_text("file,label,split\na.png,cat,somewhere\n")
    with sentence('the split "somewhere": write train, test or nothing'):
        open_images(folder, path)


def test_subfolders_are_no_classes_when_there_is_a_label_file(folder):
    assert "sub" not in open_images(folder, {"a.png": "x", "b.png": "y"}).classes


def test_the_label_file_itself_can_be_opened(folder):
    path = folder / "labels.csv"
    path.write_text("file,label\na.png,cat\nsub/b.png,dog\n")
    assert labels_by_name(open_images(path).train) == EXPECTED


def test_changed_labels_decode_nothing(folder):
    path = folder / "labels.csv"
    path.write_text("file,label\na.png,cat\nsub/b.png,dog\n")
    open_images(folder, path)
    path.write_text("file,label\na.png,dog\nsub/b.png,bird\n")
    data = open_images(folder, path, progress=lambda done, total: pytest.fail("decoded again"))
    assert data.classes == ("bird", "dog")


def test_mapping(folder):
    data = open_images(folder, {"a.png": 3, "sub/b.png": 10, "c.png": None})
    assert data.classes == ("3", "10")
    assert data.train.labels.tolist() == [0, 1, -1]


def test_natural_order():
    assert sorted(["b10", "b9", "a", "10", "9"], key=natural) == ["9", "10", "a", "b9", "b10"]
    assert sorted(["²", "x", "1"], key=natural) == ["1", "x", "²"]


# --- one clear sentence for each mistake


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "file,label\na.png,cat\nx.png,dog\ny.png,dog\nz.png,dog\nw.png,dog\n",
            r"labels\.csv names 4 images that are not in .*pets: x\.png, y\.png, z\.png, \.\.\.;",
        ),
        ("file,label\na.png,cat\nx.png,dog\n", r"names an image that is not in .*: x\.png;"),
        (
            "file,label\na.png,cat\nb.png,dog\n\nsub/b.png,cat\n",
            r'gives sub/b\.png two labels, "dog" in line 3 and "cat" in line 5',
        ),
        ("file,label\na.png,cat\nb.png,cat\n", r'labels\.csv has only one class, "cat"'),
        ("width,height\n3,4\n", r"no file column that can be recognized \(it has width, height\)"),
        ("file,width,height\na.png,3,4\n", "no label column that can be recognized"),
        ("file,label\n", "has a header but no line below it"),
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("file,label\na,b.png,cat\n", "3 cells in line 2 where the header has 2"),
        ("file,label\n,cat\n", "names no file in line 2"),
        (b"PK\x03\x04rest of a workbook", "is a spreadsheet"),
        (b"\x00\x01\x02\x03" * 9, "is not a text file"),
    ],
)
def test_mistakes(folder, text, said):
    with sentence(said):
        opened(folder, text)


def test_the_same_label_twice_is_no_mistake(folder):
    assert opened(folder, "file,label\na.png,cat\na.png,cat\nsub/b.png,dog\n") == EXPECTED


def test_missing_label_file(folder):
    with sentence("there is no label file"):
        open_images(folder, folder / "nothing.csv")
    with sentence("can't be read"):
        open_images(folder, folder / "sub")


def test_bare_name_that_fits_two_files(folder):
    save(folder / "more" / "b.png", 9)
    with sentence("names b.png, which fits 2 files"):
        opened(folder, "file,label\na.png,cat\nb.png,dog\n")


def test_the_start_of_a_path_is_not_dropped_at_will(folder):
    # train/a.png and test/a.png are two pictures; only one of them can be the a.png here.
    with sentence("names 2 images that are not in"):
        opened(folder, "file,label\ntrain/a.png,cat\ntest/sub/b.png,dog\n")


def test_a_label_whose_only_image_cant_be_read(folder):
    (folder / "a.png").write_bytes(b"")
    with sentence('class "cat" has no image that can be read'):
        opened(folder, "file,label\na.png,cat\nb.png,dog\nc.png,mouse\n")


def test_lines_are_counted_as_an_editor_does(folder):
    path = folder / "labels.csv"
    path.write_text('sep=,\nfile,label\n\n"a.png",cat\n')
    assert [entry.line for entry in read_labels(path).entries] == [4]


def test_twenty_thousand_lines_take_no_time(tmp_path):
    import time

    from wazuka.data.table import match_labels

    path = tmp_path / "labels.csv"
    names = [f"lot/{i:05d}.png" for i in range(20_000)]
    path.write_text("file,label\n" + "".join(f"{name},{i % 10}\n" for i, name in enumerate(names)))
    start = time.perf_counter()
    matched = match_labels(read_labels(path), names, tmp_path)
    assert time.perf_counter() - start < 3
    assert np.array(list(matched.labels)).tolist() == list(range(20_000))
