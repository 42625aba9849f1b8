"""The blocks that reports are made of."""

from bigbatch.report.blocks import table


def test_a_table_leaves_out_columns_without_any_text():
    made = table(["batch", "note", "updates"], [["8", "", 5], ["16", "", 3]], numbers=["batch"]).of
    assert (made["columns"], made["rows"]) == (["batch", "updates"], [["8", "5"], ["16", "3"]])


def test_a_table_keeps_a_column_with_some_text_and_all_where_it_has_no_rows():
    made = table(["batch", "note"], [["8", ""], ["16", "at the edge"]]).of
    assert (made["columns"], made["rows"]) == (["batch", "note"], [["8", ""], ["16", "at the edge"]])
    assert table(["batch", "note"], []).of["columns"] == ["batch", "note"]
