import csv
import io

from wazuka.app.model import Prediction
from wazuka.app.tables import predictions_csv
from wazuka.data import Skipped


def test_one_row_a_picture_and_unreadable_files_last():
    answers = [Prediction("b.png", "bee", 0.98765, "ant", 0.0123), Prediction("a.png", "ant", 1.0, "bee", 0.0)]
    text = predictions_csv(answers, [Skipped("broken.png", "the file ends early")])
    assert text.splitlines() == [
        "file,label,probability,runner_up,runner_up_probability,note",
        "b.png,bee,0.9877,ant,0.0123,",
        "a.png,ant,1.0000,bee,0.0000,",
        "broken.png,,,,,the file ends early",
    ]


def test_any_name_comes_back_from_the_table():
    odd = 'a "b", c\nd;é=1.png'
    text = predictions_csv([Prediction(odd, odd, 0.5, odd, 0.5)], [Skipped(odd, odd)])
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[1] == [odd, odd, "0.5000", odd, "0.5000", ""]
    assert rows[2] == [odd, "", "", "", "", odd]


def test_an_empty_table_has_its_header():
    assert predictions_csv([], []).count("\n") == 1
