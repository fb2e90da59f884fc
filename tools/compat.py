"""Try the library on hundreds of models of timm, torchvision, transformers, segmentation-models-pytorch,
diffusers and MONAI.

    python tools/compat.py                           # every model that is not in results/compat.json yet
    python tools/compat.py --match 'vit*' --again    # these afresh
    python tools/compat.py --write-docs              # docs/compatibility.md from the records

Needs the libraries themselves (`pip install timm torchvision transformers segmentation-models-pytorch diffusers
monai`); random weights only, nothing is downloaded.
"""

import sys

if __name__ == "__main__":
    from compat.sweep import main

    sys.exit(main(sys.argv[1:]))
