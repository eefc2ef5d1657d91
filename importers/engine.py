"""importers/engine.py: write the episodes of many files into one folder, on many processes.

    files --an importer--> jobs (a large file each, or a batch of small ones) --write_part, in workers-->
    OUT.partial/part-00000/ and its report, part-00000.json --choose_groups, merge, scale_actions--> OUT

A part is complete once its report exists: the same command continues an interrupted import. Episodes keep
their numbers in the source, which decide the split: a skipped episode shifts no other.
S frames of all episodes, A action dim."""

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from importers.recording import check, read_json, reason_of, scale_actions
from support.tables import read_index
from support.writer import KIND, EpisodeWriter, kind_of, put_in_place, write_json, write_tables


def find_files(src, types):
    """Names, from the folder src, of its files of these types."""
    names = []
    others = Counter()
    for path in sorted(Path(src).rglob("*")) if src else ():
        if path.suffix.lower() in types:
            names.append(path.relative_to(src).as_posix())
        elif path.is_file() and not path.name.startswith("."):
            others[path.suffix.lower() or path.name] += 1
    if not names:
        raise FileNotFoundError(f"--src {str(src)!r} has no {', '.join(types)} files; pass a folder that has")
    if others:
        print("files that are not read: " + ", ".join(f"{n} {kind}" for kind, n in others.most_common(10)))
    return names


def batch_jobs(items):
    """Items (number, name, ...) of small files -> jobs (name of the first, items): few, for large shards."""
    n = max(50, len(items) // 500)
    return [(items[i][1], items[i : i + n]) for i in range(0, len(items), n)]


def file_episodes(_, batch, src, read, **settings):
    """A batch of (number, name) of episodes that are a file each; settings: further arguments of `read`."""
    for number, name in batch:
        yield number, name, functools.partial(read, Path(src) / name, **settings)


def _stem(name):
    return name.rsplit("/", 1)[-1].removesuffix(".npz").removesuffix(".hdf5")


def usable_episodes(job, episodes, size, min_frames, exclude, report):
    """Yield (number, name, what `check` returns) of a job's episodes; reports errors."""
    stream = episodes(*job)
    while True:
        name = job[0]
        try:
            number, name, read = next(stream)
            if exclude & {str(number), _stem(name)}:
                report["excluded"] += 1
                continue
            checked = check(read(), size)
            if len(checked[0]) < min_frames:
                raise ValueError(f"{len(checked[0])} frames, fewer than --min_frames {min_frames}")
        except StopIteration:  # also after an error of the stream itself
            return
        except (MemoryError, ImportError):  # these end the import
            raise
        except Exception as error:
            report["skipped"].append((name, reason_of(error)))
            continue
        yield number, name, checked


def write_part(i, job, folder, episodes, size, min_frames, jpeg, exclude):
    """Import a job into folder/part-i, a folder for each kind (KIND) of episode; its report comes last."""
    part = f"part-{i:05d}"
    groups = {}  # by kind, as JSON
    writers = {}
    report = dict(groups=groups, excluded=0, skipped=[])
    shutil.rmtree(folder / part, ignore_errors=True)  # left by a killed process
    with contextlib.ExitStack() as stack:
        for number, name, checked in usable_episodes(job, episodes, size, min_frames, exclude, report):
            *arrays, unused = checked
            kind = json.dumps(kind_of(*arrays))
            if kind not in groups:
                groups[kind] = dict(folder=f"{part}/{len(groups)}", names=[], unused=Counter())
                writer = EpisodeWriter(folder / groups[kind]["folder"], "", is_part=True, jpeg=jpeg)
                writers[kind] = stack.enter_context(writer)
            writers[kind].add(*arrays, name, number)
            groups[kind]["names"].append(name)
            groups[kind]["unused"].update(unused)
    write_json(folder / f"{part}.json", report)


def _begin_worker():
    """A worker decodes with one thread, and ends when its parent ends for whatever reason."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches workers too: no traceback from each

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def write_parts(jobs, folder, write, workers):
    """Write the parts that are not complete, on so many processes.   returns  the reports of all"""
    reports = [folder / f"part-{i:05d}.json" for i in range(len(jobs))]
    todo = [i for i, report in enumerate(reports) if not report.is_file()]
    if workers == 1 or len(todo) < 2:
        for i in tqdm(todo, "import", unit="part"):
            write(i, jobs[i])
        return [read_json(report) for report in reports]
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    pool = ProcessPoolExecutor(min(workers, len(todo)), spawn, _begin_worker)
    try:
        futures = [pool.submit(write, i, jobs[i]) for i in todo]
        for future in tqdm(as_completed(futures), "import", len(todo), unit="part"):
            future.result()
    except BrokenProcessPool:
        raise ValueError("a worker was killed (lack of memory?); repeat with fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)
    return [read_json(report) for report in reports]


def choose_groups(reports):
    """The groups of the kind that most episodes have; the other episodes join those skipped."""
    counts = Counter()
    for report in reports:
        for kind, group in report["groups"].items():
            counts[kind] += len(group["names"])
    usual = max(counts, key=counts.get, default=None)
    chosen = []
    for report in reports:
        for kind, group in report["groups"].items():
            if kind == usual:
                chosen.append(group)
            else:
                reason = f"it has {json.loads(kind)}, the imported ones {json.loads(usual)}; they must agree"
                report["skipped"] += [(name, reason) for name in group["names"]]
    return chosen


def print_summary(reports, groups, folder, src, n_listed):
    """Print what was imported and what not, with reasons (all in skipped.txt); returns not_imported."""
    lines = []
    for report in reports:
        for name, reason in report["skipped"]:
            lines.append(f"skipped {src}/{name}: {reason}".replace("\n", "\\n"))
    unused = Counter()
    for group in groups:
        unused.update(group["unused"])
    first = f"imported {sum(len(group['names']) for group in groups)}, skipped {len(lines)}"
    if n_listed:
        first += f", excluded {sum(report['excluded'] for report in reports)} of the {n_listed} listed"
    print("\n".join([first, *lines[:20]]))
    if len(lines) > 20:
        print(f"skipped {len(lines) - 20} more, listed in skipped.txt")
    if unused:
        print("in the episodes but not imported: " + ", ".join(f"{name} ({n})" for name, n in unused.items()))
    if not groups:
        shutil.rmtree(folder)
        raise ValueError(f"no episode was added, so nothing is written; {(lines or [first])[0]}")
    if lines:
        text = "\n".join(lines) + "\n"  # file names need not be UTF-8
        (folder / "skipped.txt").write_bytes(text.encode(errors="backslashreplace"))
    return dict(unused)


def merge(folder, parts, meta, scale):
    """Merge the folders of parts into `folder`, in the order of numbers; repeats a merge that was killed."""
    tables = []
    columns = {}
    n_shards = 0
    n_frames = 0
    for part in parts:
        part_meta = read_json(part / "meta.json")
        for shard in range(part_meta["shards"]):
            with contextlib.suppress(FileNotFoundError):  # the killed merge has moved it
                os.replace(part / f"shard-{shard:05d}.bin", folder / f"shard-{n_shards + shard:05d}.bin")
        tables.append(read_index(part / "index.npz"))
        tables[-1]["shard"] += n_shards
        tables[-1]["row"] += n_frames
        for path in part.glob("*.npy"):
            columns.setdefault(path.stem, []).append(np.load(path))
        n_shards += part_meta["shards"]
        n_frames += part_meta["frames"]
    index = {key: np.concatenate([table[key] for table in tables]) for key in tables[0]}
    actions = np.concatenate(columns.pop("actions"))
    meta = dict(meta, **{key: part_meta[key] for key in KIND}, episodes=len(index["row"]), frames=n_frames,
                shards=n_shards, **scale_actions(actions, index["length"], scale))
    order = np.argsort(index["number"], kind="stable")
    index = {key: column[order] for key, column in index.items()}
    write_tables(folder, meta, index, actions=[actions], **columns)


def begin(folder, settings):
    """Create OUT.partial, or raise ValueError if it is of an import with other settings, naming these."""
    path = folder / "settings.json"
    settings = json.loads(json.dumps(settings, default=lambda function: function.__name__))
    if not path.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(path, settings)
    begun = read_json(path)
    changed = [name for name in sorted({**begun, **settings}) if begun.get(name) != settings.get(name)]
    if changed:
        raise ValueError(f"{folder} was begun with other {', '.join(changed)}; delete it to begin anew")


def run_import(jobs, episodes, out, key, size, min_frames, val_every, workers, jpeg, exclude="", scale=""):
    """Write the episodes of all jobs to `out` and print what was skipped; continues an interrupted import.

    jobs      tuples of a name and further arguments; a job's episodes are written together
    episodes  functools.partial with keywords, src among them. Called with a job's items it yields (number,
              name, function that returns a Recording), and raises an Exception where it finds no more
    key       for meta.json: the array or camera of the frames;  scale  as in `scale_actions`"""
    src = episodes.keywords["src"]
    writer = EpisodeWriter(out, src, key, val_every, jpeg=jpeg)
    folder = writer.partial
    text = Path(exclude).read_text("utf-8", "surrogateescape") if exclude else ""
    listed = [line for line in text.splitlines() if line.strip()]  # each with all names of an episode
    excluded = {_stem(word) for word in re.findall(r"[^\s,]+", text)}
    how = dict(size=size, min_frames=min_frames, jpeg=jpeg)
    digest = hashlib.sha256(json.dumps(jobs).encode()).hexdigest()[:16]
    begin(folder, dict(episodes.keywords, **how, val_every=val_every, exclude=sorted(excluded),
                       version=3, reader=episodes.func, files=f"{len(jobs)} parts, {digest}"))
    if not (folder / "meta.json").is_file():
        write = functools.partial(write_part, folder=folder, episodes=episodes, exclude=excluded, **how)
        reports = write_parts(jobs, folder, write, workers or torch.get_num_threads())
        groups = choose_groups(reports)
        meta = dict(writer.meta, not_imported=print_summary(reports, groups, folder, src, len(listed)))
        merge(folder, [folder / group["folder"] for group in groups], meta, scale)
    for leftover in folder.glob("part-*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    put_in_place(folder, writer.out)
