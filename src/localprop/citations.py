"""BibTeX of the papers."""

CHOI_2024 = """@inproceedings{choi2024dictionary,
  title     = {Dictionary Contrastive Learning for Efficient Local Supervision without Auxiliary Networks},
  author    = {Choi, Suhwan and others},
  booktitle = {International Conference on Learning Representations},
  year      = {2024}
}"""

NOKLAND_2019 = """@inproceedings{nokland2019training,
  title     = {Training Neural Networks with Local Error Signals},
  author    = {N{\\o}kland, Arild and Eidnes, Lars Hiller},
  booktitle = {International Conference on Machine Learning},
  year      = {2019}
}"""

RUMELHART_1986 = """@article{rumelhart1986learning,
  title   = {Learning Representations by Back-propagating Errors},
  author  = {Rumelhart, David E. and Hinton, Geoffrey E. and Williams, Ronald J.},
  journal = {Nature},
  volume  = {323},
  pages   = {533--536},
  year    = {1986}
}"""
