#!/bin/bash
# Writes the parity files that are committed: the smallest row of every family.
#     PYTHON=path/to/venv/bin/python tests/reference/make_fixtures.sh
set -eu
here=$(cd "$(dirname "$0")" && pwd)
golden() { "${PYTHON:-python3}" "$here/golden.py" --out "$here/../fixtures/parity" "$@"; }
golden reference:cifar_resnet20 --size 32 --steps 5 --digits 12
golden reference:cifar_resnet20 --size 32 --steps 5 --digits 12 --freeze conv1,bn1,layer1
golden timm:resnet18 --batch 2 --digits 12
golden reference:vgg11_bn_features --digits 12
golden timm:efficientnet_b0 --digits 10 # ten digits keep it below 60 kB
golden timm:tf_efficientnet_lite0 --digits 12
