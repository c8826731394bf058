"""Takes names of models and COCO's sets; gives their published files on disk, whole and checked."""
