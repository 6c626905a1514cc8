"""Tests of what runs inside the job."""
