"""Datasets: new ones, and files that are put into them, one file a request."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from loraloom.studio.results import to_record
from loraloom.studio.uploads import create_dataset, dataset_files, dataset_in, list_datasets
from loraloom.web.downloads import file_response, home_file
from loraloom.web.parts import TheStudio
from loraloom.web.schemas import FAILURES, Answer
from loraloom.web.uploads import received_file

__all__ = ["router"]

router = APIRouter(prefix="/api/datasets", tags=["datasets"], responses=FAILURES)

_FILE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class LimitsAnswer(Answer):
    """How much is taken: bytes of a picture and of an archive, files in a folder."""

    file: int
    archive: int
    files: int


class DatasetsAnswer(Answer):
    """The datasets of the home by name."""

    datasets: list[str]
    limits: LimitsAnswer


class DatasetRequest(BaseModel):
    """A name for a new dataset."""

    name: str


class DatasetFileAnswer(Answer):
    """A picture or caption: its path in the dataset."""

    path: str
    nbytes: int


class DatasetAnswer(Answer):
    """A dataset. ``folder``: where it lies, for the settings of a run."""

    name: str
    folder: str
    files: list[DatasetFileAnswer]


class ReceivedAnswer(Answer):
    """What became of one file. ``kept``: its path in the dataset; null where it was not kept, and ``problem`` says
    why. ``note``: what is worth knowing of one that was."""

    given: str
    kept: str | None
    note: str
    problem: str
    hint: str


class ReceivedFilesAnswer(Answer):
    """What became of a file, or of every file of an archive."""

    files: list[ReceivedAnswer]


def _dataset(dataset: str, studio: TheStudio) -> Path:
    return dataset_in(studio.home.datasets, dataset)


TheDataset = Annotated[Path, Depends(_dataset)]


@router.get("")
def datasets(studio: TheStudio) -> DatasetsAnswer:
    """Every dataset of the home."""
    limits = studio.intake.limits
    return DatasetsAnswer(
        datasets=list_datasets(studio.home.datasets),
        limits=LimitsAnswer(file=limits.file, archive=limits.archive, files=limits.files),
    )


@router.post("", status_code=201)
def new_dataset(studio: TheStudio, wish: DatasetRequest) -> DatasetAnswer:
    """Make an empty dataset; one whose name is taken gets a number."""
    return _answer(create_dataset(studio.home.datasets, wish.name))


@router.get("/{dataset}")
def one_dataset(dataset: TheDataset) -> DatasetAnswer:
    """A dataset with its files."""
    return _answer(dataset)


@router.put("/{dataset}/files", openapi_extra=_FILE_BODY)
async def put_file(
    request: Request,
    studio: TheStudio,
    dataset: TheDataset,
    name: Annotated[str, Query(max_length=4000, description="Its name, with the folders it came in.")],
) -> ReceivedFilesAnswer:
    """Put a picture, a caption or an archive of them into a dataset: the file is the body."""
    received = await received_file(request, studio.intake, dataset, name)
    return ReceivedFilesAnswer(files=[ReceivedAnswer(**to_record(one)) for one in received])


@router.get("/{dataset}/files/{path:path}", response_class=Response)
def dataset_file(request: Request, studio: TheStudio, dataset: TheDataset, path: str) -> Response:
    """One file of a dataset."""
    return file_response(request, home_file(studio.home, f"datasets/{dataset.name}", path))


def _answer(dataset: Path) -> DatasetAnswer:
    files = [DatasetFileAnswer(path=file.path, nbytes=file.nbytes) for file in dataset_files(dataset)]
    return DatasetAnswer(name=dataset.name, folder=str(dataset), files=files)
