//! PCP with the stock tools.
