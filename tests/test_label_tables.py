# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import json

import numpy as np
import pytest
from PIL import Image

from van_hf.data.label_tables import LABEL_TABLES, read_label_table
from van_hf.data.masks import IGNORE_INDEX, MaskMeaning, raw_labels

ROAD, SKY = (128, 64, 128), (70, 130, 180)
FILES = {
    "names.json": json.dumps([{"name": "road", "color": ROAD}, {"name": "sky", "color": "#4682b4"}]),
    "numbers.json": json.dumps({"1": {"name": "sky", "color": SKY}, "0": {"name": "road", "color": [*ROAD, 255]}}),
    "mapillary.json": json.dumps({"labels": [{"readable": "road", "color": ROAD}, {"readable": "sky", "color": SKY}]}),
    "class_dict.csv": "\ufeffname,r,g,b\nroad,128,64,128\nsky,70,130,180\n",
    "semicolons.csv": "Label; Colour\nroad; 128 64 128\nsky; #4682b4\n",
    "tabs.tsv": 'id\tname\tcolor\n1\tsky\t"(70, 130, 180)"\n0\troad\t"(128, 64, 128)"\n',
    "labelmap.txt": "# label:color_rgb:parts:actions\nroad:128,64,128::\nsky:70,130,180::\n",
}


@pytest.mark.parametrize("name", FILES)
def test_files_as_people_have_them(name, tmp_path):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    table = read_label_table(tmp_path / name)
    assert table.id2label == {0: "road", 1: "sky"}
    assert table.colors == {ROAD: 0, SKY: 1}
    assert table.values == {}
    assert table.palette == [list(ROAD), list(SKY)]


def test_a_table_with_train_ids(tmp_path):
    (tmp_path / "labels.csv").write_text(
        "name,id,trainId,color\nunlabeled,0,255,#000000\nroad,7,0,#804080\npolegroup,18,255,#4682b4\n"
        "sky,23,1,#4682b4\nlicense plate,-1,-1,#00008e\n"
    )
    table = read_label_table(tmp_path / "labels.csv")
    assert table.id2label == {0: "road", 1: "sky"}
    assert table.values == {0: 255, 7: 0, 18: 255, 23: 1}
    assert table.colors == {(0, 0, 0): 255, ROAD: 0, SKY: 1, (0, 0, 142): 255}


@pytest.mark.parametrize(
    "text",
    [
        "label,name\n1,sky\n0,road\n",
        "name,label\nsky,1\nroad,0\n",
        "class,name\n1,sky\n0,road\n",
        "class_index,class\n1,sky\n0,road\n",
        "idx;label\n1;sky\n0;road\n",
        "sep=;\nname;pixel_value\nsky;1\nroad;0\n",
        "# by hand\ncolor,name,id\n#4682b4,sky,1\n#804080,road,0\n",
    ],
)
def test_numbers_go_by_many_names(text, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    assert read_label_table(tmp_path / "a.csv").id2label == {0: "road", 1: "sky"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "it is empty"),
        ("a.csv", "road,128,64,128\n", "first line is 'road,128,64,128'; expected a heading with a column 'name'"),
        ("a.csv", "name,r,g,b\nroad,1,2,3\nsky,1,2,3\n", r"labels 0 and 1 have the same colour \[1, 2, 3\]"),
        ("a.csv", "name,r,g,b\nroad,1,2,300\n", "row 0 has the colour"),
        ("a.csv", "name,id\nroad,one\n", "row 0 has 'one' where a whole number"),
        ("a.csv", "name,id\nroad,0\nsky,0\n", "several entries for label 0"),
        ("a.csv", "name,id\nroad,0\nsky,2\n", "expected 0, 1, 2"),
        ("a.csv", "name,color\nroad,#000000\nsky,\n", "these have none: 1 'sky'"),
        ("a.json", '{"0": {"name": "road", "color": [1, 2]}}', "row 0 has the colour"),
        ("a.json", '{"0": {"color": [1, 2, 3]}}', "label 0 is called null"),
        ("a.csv", "name,id,trainId\na,7,0\nb,7,1\n", "several entries for the id 7"),
        ("a.csv", "name,id\n" + "x" * 200_000 + ",0\n", "cannot be read as a table"),
        ("a.json", "[" * 100_000, "cannot be read as JSON"),
        ("a.json", '[{"name": "a", "color": [1.5, 0, 0]}]', "has the colour"),
        ("a.json", '[{"name": "a", "color": [1e999, 0, 0]}]', "has the colour"),
        ("a.json", "[", "cannot be read"),
    ],
)
def test_files_that_cannot_be(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_label_table(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "num_labels", "raw", "label"),
    [
        *[("cityscapes", 19, raw, label) for raw, label in ((7, 0), (33, 18), (0, 255), (26, 13), (18, 255))],
        *[("loveda", 7, raw, label) for raw, label in ((0, 255), (1, 0), (7, 6))],
    ],
)
def test_raw_values_of_well_known_datasets(name, num_labels, raw, label):
    table = LABEL_TABLES[name]
    assert list(table.id2label) == list(range(num_labels))
    assert table.values[raw] == label


def test_colors_of_pascal_voc_are_the_devkits():
    """Its colour map takes the bits of the label in turn."""
    for label in range(21):
        channels = [sum(((label >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
        assert LABEL_TABLES["pascal_voc"].colors[tuple(channels)] == label


@pytest.mark.parametrize("name", LABEL_TABLES)
def test_coloured_masks_of_well_known_datasets(name):
    table = LABEL_TABLES[name]
    assert len(table.palette) == len(table.id2label)
    labels = raw_labels(
        Image.fromarray(np.array([table.palette], dtype=np.uint8)), MaskMeaning(colors=tuple(table.colors.items()))
    )
    assert labels.tolist() == [list(table.id2label)]
    assert set(table.colors.values()) <= {*table.id2label, IGNORE_INDEX}
