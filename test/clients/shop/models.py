from django.db import models


class Payment(models.Model):
    amount = models.IntegerField()

    class Meta:
        app_label = 'shop'
        db_table = 'payment'
        managed = False
